"""What is held out is said, and so is how much of it is also to train on."""

import numpy as np
import pytest

from jaxpar.data.prepare import in_words
from jaxpar.data.source import Pairs, Text
from jaxpar.data.tokenizer import ByteTokenizer
from jaxpar.sources.corpus import Example
from jaxpar.tokens.duplicates import ItemHash, count_in_both

SIZES = {"seq_len": 16, "batch_size": 2}


def hashed(items):
    values = []
    for item in items:
        digest = ItemHash(item.prompt)
        for start in range(0, len(item.answer), 7):
            digest.update(item.answer[start : start + 7])
        values.append(digest.value())
    return np.array(values, np.uint64)


def count(train, heldout):
    train = hashed(train)
    return count_in_both([train[:1], train[1:]], hashed(heldout))


@pytest.mark.parametrize(
    "train, heldout, n",
    [
        ([b"a", b"b"], [b"c"], 0),
        ([b"a", b"b"], [b"b", b"c", b"b"], 2),
        ([b"", b"b"], [b"", b"c"], 0),
        ([b"a"], [], 0),
        ([], [b"a"], 0),
        ([b"a" * 100_000], [b"a" * 100_000], 1),
        ([b"a" * 100_000], [b"a" * 99_999 + b"b"], 0),
    ],
)
def test_held_out_items_that_are_also_to_train_on_are_counted(train, heldout, n):
    items = [[Example(text) for text in part] for part in (train, heldout)]
    assert count(*items) == n


def test_a_prompt_is_part_of_an_item():
    one, other = Example(b"answer", b"ask"), Example(b"answer", b"tell")
    assert count([one], [other]) == 0 and count([one], [one]) == 1
    # The same bytes, cut in another place.
    assert count([Example(b"bc", b"a")], [Example(b"c", b"ab")]) == 0


def prepared(data):
    return data.prepare(ByteTokenizer(), progress=False).description


def test_what_is_held_out_and_how_much_is_said(tmp_path):
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"file {i}\n" * 20)
    (tmp_path / "one.text").write_text("a line of a text\n" * 100)
    said = in_words(prepared(Text(f"files:{tmp_path}/*.txt", **SIZES)))
    assert said.endswith("held out (whole files, by the hash of their names).")
    said = in_words(prepared(Text(f"files:{tmp_path}/one.text", **SIZES)))
    assert said == (
        f"files:{tmp_path}/one.text: 1 document (1,615 bytes) to train on, "
        "1 document (85 bytes) held out (the end of each file). One is held out: its "
        "loss says little of others."
    )


def test_what_is_held_out_of_pairs_is_said(tmp_path):
    line = '{"prompt": "1 + 1 =", "answer": " 2"}\n'
    (tmp_path / "a.json").write_text(line * 60)
    said = in_words(prepared(Pairs(f"files:{tmp_path}/a.json", **SIZES)))
    assert "57 examples (114 bytes) to train on, 3 examples (6 bytes) held out" in said


def test_documents_in_both_parts_are_said():
    part = {"windows": 9, "documents": 8, "bytes": 1_000}
    described = {"source": "x", "train": part, "heldout": part, "in_both_parts": 3}
    assert " 3 of those held out are also to train on, " in in_words(described)
    assert "also" not in in_words({**described, "in_both_parts": 0})
