"""A held-out set of one's own is scored, and all of the source is trained on.

pytest tests/data/test_separate_heldout.py
"""

import dataclasses

import pytest

from jaxpar.config import fingerprint
from jaxpar.data.source import Pairs, Text
from jaxpar.data.tokenizer import BPE, ByteTokenizer
from jaxpar.errors import UserError

OLDER = "58e32121"
"""What jaxpar 0.2.0 gave."""
SIZES = {"seq_len": 16, "batch_size": 2}
PAIR = '{"prompt": "1 + 1 =", "answer": " %d"}\n'


@pytest.fixture
def folder(tmp_path):
    for i in range(30):
        (tmp_path / f"train{i}.txt").write_text(f"file {i} to train on\n" * 9)
    (tmp_path / "own.txt").write_text("one line to hold out")
    (tmp_path / "train.jsonl").write_text("".join(PAIR % i for i in range(40)))
    (tmp_path / "own.jsonl").write_text(PAIR % 3)
    return tmp_path


def test_all_of_the_source_is_trained_on_and_all_of_the_other_held_out(folder):
    alone = Text(f"files:{folder}/train*.txt", **SIZES)
    data = dataclasses.replace(alone, heldout=f"files:{folder}/own.txt")
    found = data.prepare(progress=False).description
    assert found["train"]["documents"] == 30
    assert (found["heldout"]["documents"], found["heldout"]["bytes"]) == (1, 20)
    assert found["held_out"] == f"all of files:{folder}/own.txt"
    assert found["content"] != alone.prepare(progress=False).description["content"]


def test_the_tokenizer_learns_nothing_of_what_is_held_out(folder):
    data = Text(
        f"files:{folder}/train*.txt", tokenizer=BPE(300), **SIZES,
        heldout=f"files:{folder}/own.txt",
    )  # fmt: skip
    before = data.prepare(progress=False)
    (folder / "own.txt").write_text("holdholdhold " * 99)
    after = data.prepare(progress=False)
    assert after.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert after.fingerprint != before.fingerprint


def test_pairs_have_one_too_and_what_is_in_both_is_counted(folder):
    data = Pairs(
        f"files:{folder}/train.jsonl", **SIZES, heldout=f"files:{folder}/own.jsonl"
    )
    prepared = data.prepare(ByteTokenizer(), progress=False)
    assert (len(prepared.train), len(prepared.heldout)) == (40, 1)
    assert prepared.description["in_both_parts"] == 1


def test_two_of_different_kinds_are_refused(folder):
    data = Pairs(
        f"files:{folder}/train.jsonl", **SIZES, heldout=f"files:{folder}/own.txt"
    )
    with pytest.raises(UserError, match="give two of a kind"):
        data.prepare(ByteTokenizer(), progress=False)


def test_the_fingerprints_of_older_experiments_stay():
    assert fingerprint(Text("stdlib", **SIZES)) == OLDER
