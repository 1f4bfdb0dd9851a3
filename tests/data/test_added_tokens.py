"""A tokenizer with added tokens keeps all ids that it had.

pytest tests/data/test_added_tokens.py
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpar.data import tokenizer
from jaxpar.data.added_tokens import AddedTokens
from jaxpar.errors import UserError
from tests.data.test_tokenizer import BOTH, TEXTS

NEW = ("<|user|>", "<|user|>\n", "Öl.*", "\u2192\u2192")
SPLIT = st.lists(st.one_of(st.sampled_from(NEW), st.text())).map("".join)


@pytest.mark.parametrize("base", BOTH)
@given(text=SPLIT)
def test_decoding_undoes_encoding(base, text):
    tokens = AddedTokens(base, NEW)
    ids = tokens.encode(text.encode())
    assert tokens.decode(ids) == text
    assert max(ids, default=0) < tokens.vocab_size == base.vocab_size + len(NEW)


@pytest.mark.parametrize("base", BOTH)
def test_text_without_added_tokens_has_the_ids_that_it_had(base):
    tokens = AddedTokens(base, NEW)
    for ours, theirs in zip(
        tokens.encode_many(TEXTS), base.encode_many(TEXTS), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    special = ("pad_id", "bos_id", "eos_id")
    assert [getattr(tokens, s) for s in special] == [getattr(base, s) for s in special]


@pytest.mark.parametrize("base", BOTH)
def test_each_added_text_is_one_id_after_all_others_and_the_longest_counts(base):
    tokens, first = AddedTokens(base, NEW), base.vocab_size
    text = "".join(NEW).encode()
    assert tokens.encode(text).tolist() == [first, first + 1, first + 2, first + 3]
    assert tokens.decode([base.bos_id, first, base.eos_id]) == NEW[0]


@pytest.mark.parametrize("base", BOTH)
def test_tokens_that_are_added_later_come_after_those_of_before(base):
    twice = AddedTokens(AddedTokens(base, NEW[:2]), NEW[2:])
    assert twice.fingerprint == AddedTokens(base, NEW).fingerprint
    swapped = AddedTokens(base, NEW[::-1])
    assert len({base.fingerprint, twice.fingerprint, swapped.fingerprint}) == 3


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (("",), "empty"),
        (("<a>", "<b>", "<a>"), "'<a>' twice"),
        (("a",), "token already, with the id"),
        (("\ud800",), "not UTF-8"),
    ],
    ids=["empty", "twice", "known", "surrogate"],
)
@pytest.mark.parametrize("base", [*BOTH, AddedTokens(BOTH[0], NEW)])
def test_a_text_that_cannot_be_a_new_token_is_refused(base, texts, words):
    with pytest.raises(UserError, match=words):
        AddedTokens(base, texts)


def test_a_token_that_was_added_before_is_one_already():
    with pytest.raises(UserError, match="token already, with the id 259"):
        AddedTokens(AddedTokens(BOTH[0], NEW), NEW[:1])


@pytest.mark.parametrize("base", BOTH)
def test_a_saved_tokenizer_loads_as_the_same(base, tmp_path):
    tokens = AddedTokens(base, NEW)
    tokens.save(tmp_path)
    loaded = tokenizer.load(tmp_path)
    assert loaded.fingerprint == tokens.fingerprint
    text = "".join(NEW).encode()
    assert (loaded.encode(text) == tokens.encode(text)).all()


@pytest.mark.parametrize("content", ['["<x>"]', "[1]", "{", None])
def test_added_tokens_that_changed_on_disk_are_refused(content, tmp_path):
    AddedTokens(BOTH[0], NEW).save(tmp_path)
    path = tmp_path / "added_tokens.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match="hash is|lists no added tokens"):
        tokenizer.load(tmp_path)
