"""A source that hangs while its documents are read is named.

pytest tests/files/test_slow_reads.py
"""

import math
import threading
import time

import pytest

from jaxpar.files import slow_reads
from jaxpar.sources import own_source
from jaxpar.sources.corpus import Corpus, Document


class Slow(Corpus):
    """Documents of which number 3 is read when it is released."""

    def __init__(self):
        super().__init__("slow", source="slow:source")
        self.released = threading.Event()

    def documents(self):
        return {"train": self}

    def fingerprint(self):
        return "0"

    def __getitem__(self, i):
        if i == 3:
            self.released.wait(20)
        return Document(str(i), b"text")


@pytest.fixture
def reads(monkeypatch):
    """A record of its own, looked at often."""
    monkeypatch.setattr(slow_reads, "SAY_SECONDS", 0.1)
    monkeypatch.setattr(slow_reads, "LOOK_SECONDS", 0.01)
    found = slow_reads.SlowReads()
    monkeypatch.setattr(slow_reads, "said", found.said)
    return found


def test_a_document_that_hangs_is_named_and_no_other(reads, capsys):
    corpus = Slow()
    threading.Timer(0.5, corpus.released.set).start()
    began = time.monotonic()
    for i in range(6):
        assert own_source.text_of(corpus, "train", corpus, i) == b"text"
    doublings = math.log2((time.monotonic() - began) / 0.1)
    first, *more = capsys.readouterr().err.splitlines()
    assert first == (
        "slow:source: document 3 of the part 'train' has been read for 0 s."
    )
    assert 1 <= len(more) <= doublings
    assert all("document 3 " in line for line in more)


def test_its_thread_ends_when_nothing_is_read_any_more(reads):
    with reads.said("a document"):
        assert reads._watched
    ends = time.monotonic() + 20
    while reads._watched:
        assert time.monotonic() < ends
        time.sleep(0.01)
    with reads.said("another"):
        assert reads._watched
