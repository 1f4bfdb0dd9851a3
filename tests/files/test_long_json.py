"""A hash of long JSON is that of the whole."""

import pytest

from jaxpar import cache
from jaxpar.files import long_json
from jaxpar.files.lazy import Lazy


@pytest.mark.parametrize("n", [0, 1, 2, 7, 8, 9])
def test_the_key_is_that_of_the_cache(n, monkeypatch):
    monkeypatch.setattr(long_json, "AT_ONCE", 4)
    rows = [[f'a "name" é {i}', i, None] for i in range(n)]
    lazy = Lazy(range(n), rows.__getitem__)
    more = {"b": 1, "a": [], "versions": {"z": "1", "y": "2"}, "empty": {}}
    expected = cache.key(files=rows, pieces={"train": rows, "heldout": rows}, **more)
    found = long_json.key(files=lazy, pieces={"train": lazy, "heldout": lazy}, **more)
    assert found == expected
