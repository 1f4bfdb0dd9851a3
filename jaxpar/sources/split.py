"""The held-out part: which documents, or which end of a document, are in it."""

import hashlib
import mmap

ONE_IN = 20
"""One document of this many is held out, or the last 1/20 of each."""


def held_out(name: str) -> bool:
    """Whether the SHA-256 of a document's name puts it into the held-out part."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % ONE_IN == 0


def tail(text: bytes | mmap.mmap) -> int:
    """The byte at which the held-out end of one document starts.

    This is the first line that starts in the last 5 %; where none does, the last line.
    A document of a single line is not cut: its length is returned.
    """
    mark = len(text) - len(text) // ONE_IN
    # A newline at the very end starts no further line.
    stop = len(text) - (text[-1:] == b"\n")
    if (newline := text.find(b"\n", max(mark - 1, 0), stop)) >= 0:
        return newline + 1
    newline = text.rfind(b"\n", 0, stop)
    return newline + 1 if newline >= 0 else len(text)
