"""Which part of a corpus is held out."""

import hashlib

ONE_IN = 20
"""One document of this many is held out, or the last 1/20 of each."""


def held_out(name: str) -> bool:
    """True where the hash of a document's name says so: the same everywhere."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % ONE_IN == 0


def tail(text: bytes) -> int:
    """Where the held-out end of one document starts: the line at its last 5 %.

    It is the first line to start there; if that is none, the last line before. A
    document of a single line has no such place and keeps its whole length.
    """
    mark = len(text) - len(text) // ONE_IN
    body = text[:-1] if text.endswith(b"\n") else text
    if (after := body.find(b"\n", max(mark - 1, 0))) >= 0:
        return after + 1
    before = body.rfind(b"\n")
    return before + 1 if before >= 0 else len(text)
