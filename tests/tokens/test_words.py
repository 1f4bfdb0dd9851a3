"""Byte-level BPE by words gives the ids that the library gives to the whole text."""

import random

import numpy as np
import pytest

from jaxpar.data.tokenizer import BPE
from jaxpar.tokens import words
from jaxpar.tokens.words import WordEncoder, is_plain

TEXT = "it's the dog's 12 days, they'll've been 3.5 äöü 中文。\n\n  x\t\ty ٣٤ ²Ⅷ\n" * 60
ODD = [
    *" \n\t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u2028\u3000''stremvldSTRE1aA_.-é中²Ⅷ",
    *"\u0301\u200b\ufeff٣\U0001f600\U0001d7d8\u1680\u180e\x00\x7f[]^\\-",
]


@pytest.fixture(scope="module")
def model():
    return BPE(500).build([TEXT.encode()]).model


def by_library(model, text):
    (encoding,) = model.encode_batch_fast([text], add_special_tokens=False)
    return np.asarray(encoding.ids, np.int32)


def drawn(seed, n):
    """Texts of odd characters, of any characters, and of both."""
    rng = random.Random(seed)
    others = [chr(rng.randrange(0xD800)) for _ in range(300)]
    for k in range(n):
        source = (ODD, others, ODD + others)[k % 3]
        yield "".join(rng.choices(source, k=rng.randrange(60)))


def test_ids_are_those_of_the_library(model):
    encoder = WordEncoder(model)
    for text in [TEXT, "", " ", "'", "a" * 5_000, " " * 5_000, *drawn(0, 1_500)]:
        found = encoder.encode(text)
        assert found.dtype == np.int32
        assert found.tolist() == by_library(model, text).tolist(), repr(text)


def test_words_that_are_forgotten_have_the_same_ids_again(model, monkeypatch):
    monkeypatch.setattr(words, "MOST_WORDS", 5)
    encoder = WordEncoder(model)
    for text in [TEXT, *drawn(1, 60)]:
        assert encoder.encode(text).tolist() == by_library(model, text).tolist()
        assert len(encoder._numbers) <= 5


def test_only_plain_byte_level_bpe_is_cut_into_words(model):
    import tokenizers

    assert is_plain(model)
    other = tokenizers.Tokenizer.from_str(model.to_str())
    other.normalizer = tokenizers.normalizers.Lowercase()
    assert not is_plain(other)
    other = tokenizers.Tokenizer.from_str(model.to_str())
    other.add_special_tokens(["<x>"])
    assert not is_plain(other)
    other = tokenizers.Tokenizer.from_str(model.to_str())
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert not is_plain(other)


def test_much_text_has_the_ids_of_the_library(model):
    tokens = BPE(500).build([TEXT.encode()])
    texts = [TEXT.encode() * 30, b"", b"x y"]
    expected = [by_library(tokens.model, text.decode()) for text in texts]
    found = tokens.encode_many(texts)
    assert "_words" in vars(tokens)
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]
