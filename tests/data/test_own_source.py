"""An error in a source of one's own names the source, the part and the document."""

import pytest

from jaxpar.errors import UserError
from jaxpar.sources import own_source
from jaxpar.sources.corpus import Corpus, Document, Lazy


class Own(Corpus):
    """A source of one's own, whose third document is as it is given."""

    source = "own:source"

    def __init__(self, third):
        self.third = third

    def documents(self):
        return {"train": Lazy(range(5), self.read)}

    def read(self, i):
        if i == 2 and isinstance(self.third, Exception):
            raise self.third
        good = Document(f"number {i}", b"text")
        return self.third if i == 2 else good

    def fingerprint(self):
        return "00"


def text_of(third, i=2, **settings):
    corpus = Own(third)
    return own_source.text_of(corpus, "train", corpus.by_part["train"], i, **settings)


@pytest.mark.parametrize(
    "third, fault",
    [
        (KeyError("gone"), "KeyError: 'gone'"),
        (StopIteration(), "StopIteration: $"),
        (MemoryError("too much"), "MemoryError: too much"),
        ("a text", "AttributeError: 'str' object has no attribute 'text'"),
        (None, "AttributeError: 'NoneType' object has no attribute 'text'"),
        (Document("x", None), r"\(x\): its text is of type NoneType; it must be by"),
        (Document("x", bytearray(b"a")), r"\(x\): its text is of type bytearray; it"),
    ],
)
def test_an_error_after_some_documents_names_the_next_one(third, fault):
    assert text_of(third, 1) == b"text"
    with pytest.raises(
        UserError, match=f"source.*document 2 of the part 'train'.*{fault}"
    ):
        text_of(third)


@pytest.mark.parametrize("block_bytes", [1, 2, 1 << 20])
@pytest.mark.parametrize(
    "text, place",
    [(b"\xff", 0), ("äö→".encode() + b"\xe2\x82", 7), (b"good \xe9 bad", 5)],
)
def test_a_text_that_is_not_utf8_is_named_where_that_matters(
    text, place, block_bytes, monkeypatch
):
    monkeypatch.setattr(own_source, "BLOCK_BYTES", block_bytes)
    third = Document("x", text)
    assert text_of(third) == text
    said = (
        rf"^own:source, document 2 of .* \(x\): its text is not UTF-8 at byte {place};"
    )
    with pytest.raises(UserError, match=said):
        text_of(third, must_be_utf8=True)


@pytest.mark.parametrize("text", ["", "a", "äö→\U0001f600" * 3])
@pytest.mark.parametrize("block_bytes", [1, 3, 1 << 20])
def test_a_text_in_utf8_is_returned_as_it_is(text, block_bytes, monkeypatch):
    monkeypatch.setattr(own_source, "BLOCK_BYTES", block_bytes)
    assert text_of(Document("x", text.encode()), must_be_utf8=True) == text.encode()
