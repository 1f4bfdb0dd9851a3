"""A tokenizer learns from all of a small corpus, and from a part of a large one."""

import pytest

from jaxpar.tokens import sample
from jaxpar.tokens.sample import texts_to_learn


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 20_000)
    monkeypatch.setattr(sample, "STRETCH_BYTES", 1_000)


def learned(documents, most=10**9):
    return [*texts_to_learn(len(documents), documents.__getitem__, most=most)]


def test_of_a_small_corpus_all_is_learned_in_order():
    documents = [b"x" * n for n in (5_000, 0, 15_000)]
    assert learned(documents) == documents


def test_who_asks_for_little_has_the_first_documents():
    documents = [b"x" * 900] * 100
    assert learned(documents, most=20_000) == documents


SHAPES = {
    "short": [b"document %d\n" % i for i in range(20_000)],
    "long": [
        b"".join(b"%d line %d\n" % (k, i) for i in range(3_000)) for k in range(9)
    ],
    "one": [b"".join(b"line %d\n" % i for i in range(60_000))],
    "no line": ["äöü".encode() * 40_000],
    "mixed": [b"short\n"] * 3_000 + [b"".join(b"line %d\n" % i for i in range(60_000))],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_of_a_large_corpus_a_part_is_drawn_from_everywhere(shape, capfd):
    documents = SHAPES[shape]
    found = learned(documents)
    assert found == learned(documents)
    assert "drawn by hash" in capfd.readouterr().err
    size = sum(map(len, found))
    assert 0.2 * sample.SAMPLE_BYTES < size < 1.3 * sample.SAMPLE_BYTES
    assert all(text.decode() is not None and len(text) <= 1_000 for text in found)
    if shape not in ("no line", "mixed"):
        whole = b"".join(documents)
        places = [whole.find(text) / len(whole) for text in found if len(text) > 9]
        assert min(places) < 0.2 and max(places) > 0.8
        lines = {line for text in documents for line in text.split(b"\n")}
        assert {line for text in found for line in text.split(b"\n")} <= lines
