"""Hashes of JSON that is too long to be in memory."""

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from jaxpar.files.lazy import Lazy

AT_ONCE = 1 << 10


def key(**parts: Any) -> str:
    """What `cache.key` returns; lists may be of type Lazy."""
    digest = hashlib.sha256()
    for text in _texts(parts):
        digest.update(text.encode())
    return digest.hexdigest()[:16]


def _texts(value: Any) -> Iterator[str]:
    """What `json.dumps` returns with sorted keys, in pieces."""
    if isinstance(value, Mapping):
        for i, name in enumerate(sorted(value)):
            yield f"{', ' if i else '{'}{json.dumps(name)}: "
            yield from _texts(value[name])
        yield "}" if value else "{}"
    elif isinstance(value, Lazy):
        yield "["
        items = iter(value)
        for i in range(0, len(value), AT_ONCE):
            some = [*itertools.islice(items, AT_ONCE)]
            yield (", " if i else "") + json.dumps(some, sort_keys=True)[1:-1]
        yield "]"
    else:
        yield json.dumps(value, sort_keys=True)
