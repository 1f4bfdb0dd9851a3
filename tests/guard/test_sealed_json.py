"""No single flipped bit of a run's JSON files changes what they say in silence.

pytest tests/guard/test_sealed_json.py
"""

import json
import re

import pytest

from jaxpar.errors import UserError
from jaxpar.guard.sealed_json import SEAL, read_json, write_json

VALUE = {"seed": 3, "sessions": [{"data": "a1", "rate": 0.25}], "keep": None}


def test_every_flipped_bit_is_refused_or_means_the_same(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, VALUE)
    whole = path.read_bytes()
    n_refused = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            found = read_json(path, remedy="Restore it.")
        except UserError as error:
            assert str(path) in str(error) and "Restore it." in str(error)
            n_refused += 1
        else:
            # Where its name is hit, the digest is a stranger beside what was written.
            assert {k: found[k] for k in VALUE} == VALUE
    assert n_refused > 6 * len(whole)


def test_files_without_a_digest_are_read_as_they_are(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps(VALUE))
    assert read_json(path, remedy="") == VALUE


@pytest.mark.parametrize("sort_keys", [False, True])
def test_an_edit_is_kept_by_what_the_message_says(tmp_path, sort_keys):
    path = tmp_path / "x.json"
    write_json(path, VALUE)
    edited = {**json.loads(path.read_text()), "seed": 4, "zero": 0}
    if not sort_keys:  # As it was written, with the digest last.
        edited[SEAL] = edited.pop(SEAL)
    text = json.dumps(edited, indent=2, sort_keys=sort_keys)
    path.write_text(text)
    with pytest.raises(UserError, match=f"remove its line {SEAL}") as error:
        read_json(path, remedy="")
    before, line, after = re.split(rf'(\n *"{SEAL}".*)', text)
    if says_comma := "and the comma before it" in str(error.value):
        before = before.removesuffix(",")
    assert says_comma != sort_keys
    path.write_text(before + after)
    assert read_json(path, remedy="") == {**VALUE, "seed": 4, "zero": 0}


@pytest.mark.parametrize("text", ["", "[" * 100_000, '{"a": 1', "[]", "7", "\0"])
def test_what_is_not_an_object_is_refused_by_name(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match="x.json is damaged: it is not .*JSON.* Restor"):
        read_json(path, remedy="Restore it.")
