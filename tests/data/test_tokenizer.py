"""Tokenizers lose nothing and are the same every time."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpar.data import tokenizer
from jaxpar.data.tokenizer import BPE, Bytes
from jaxpar.errors import UserError
from jaxpar.tokens import learning_text

TEXTS = [b"def f(x):\n    return x + 1\n" * 20, "naïve Öl \u2192 \U0001f600\n".encode()]
BOTH = [Bytes().build(TEXTS), BPE(300).build(TEXTS)]


@pytest.mark.parametrize("tokens", BOTH)
@given(text=st.text())
def test_decoding_undoes_encoding(tokens, text):
    assert tokens.decode(tokens.encode(text.encode())) == text


@pytest.mark.parametrize("tokens", BOTH)
def test_no_text_contains_a_special_id(tokens):
    spelled = b"<|endoftext|> </s> [PAD] <pad> <s>\x00"
    special = {tokens.pad_id, tokens.bos_id, tokens.eos_id}
    assert not special & set(tokens.encode(spelled).tolist())
    assert max(special) == tokens.vocab_size - 1 and len(special) == 3
    assert tokens.decode([tokens.bos_id, tokens.encode(b"a")[0], tokens.eos_id]) == "a"


@pytest.mark.parametrize("tokens", BOTH)
def test_a_saved_tokenizer_loads_as_the_same(tokens, tmp_path):
    tokens.save(tmp_path / "kept")
    loaded = tokenizer.load(tmp_path / "kept")
    assert loaded.fingerprint == tokens.fingerprint
    assert (loaded.encode(TEXTS[1]) == tokens.encode(TEXTS[1])).all()


def test_learning_twice_gives_the_same_merges():
    assert BPE(300).build(TEXTS).fingerprint == BPE(300).build(TEXTS).fingerprint


def test_the_vocabulary_size_counts_the_special_ids():
    assert BPE(280).build(TEXTS).vocab_size == 280
    assert Bytes().build([]).vocab_size == 259


def test_bpe_learns_from_no_more_than_it_is_allowed():
    first = BPE(300, train_bytes=1).build(TEXTS)
    assert first.fingerprint == BPE(300).build(TEXTS[:1]).fingerprint


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    with pytest.raises(UserError, match=r"BPE\(100\).*at least 259"):
        BPE(100)


def test_a_tokenizer_that_changed_on_disk_is_refused(tmp_path):
    BPE(300).build(TEXTS).save(tmp_path)
    other = tmp_path / "other"
    BPE(300).build([b"another text " * 9]).save(other)
    (tmp_path / tokenizer.FILE).write_bytes((other / tokenizer.FILE).read_bytes())
    with pytest.raises(UserError, match="hash"):
        tokenizer.load(tmp_path)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no tokenizer"):
        tokenizer.load(tmp_path)


def test_a_flipped_bit_anywhere_in_a_saved_tokenizer_is_refused(tmp_path):
    draw = random.Random(0)
    BPE(300).build(TEXTS).save(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        good = path.read_bytes()
        for place in draw.sample(range(len(good)), 60):
            raw = bytearray(good)
            raw[place] ^= 1 << draw.randrange(8)
            path.write_bytes(raw)
            with pytest.raises(UserError):
                tokenizer.load(tmp_path)
        path.write_bytes(good)
    tokenizer.load(tmp_path)


def test_a_tokenizer_that_an_older_version_saved_is_read(tmp_path):
    saved = BPE(300).build(TEXTS)
    saved.save(tmp_path)
    assert (tmp_path / tokenizer.FILE).read_text() == saved.model.to_str(pretty=True)
    mark = {"type": "BPE", "fingerprint": saved.fingerprint}
    (tmp_path / tokenizer.MARK).write_text(json.dumps(mark))
    assert tokenizer.load(tmp_path).fingerprint == saved.fingerprint


def test_a_long_text_teaches_the_same_in_pieces(monkeypatch):
    text = "".join(
        f"Zeile {i}: d\u00e9j\u00e0 vu, x{i % 7}=f({i})\n\t\u4e2d\u6587\u3002 "
        for i in range(900)
    ).encode()
    whole = BPE(400).build([text])
    for size in (300, 1_001, 4_096):
        monkeypatch.setattr(learning_text, "LEARN_BYTES", size)
        assert len([*learning_text.first_pieces([text], len(text))]) > 2
        assert BPE(400).build([text]).fingerprint == whole.fingerprint
