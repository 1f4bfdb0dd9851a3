"""The held-out part: which documents, or which end of a document, are in it."""

import hashlib

from jaxpar.files.file_text import FileText

ONE_IN = 20
"""One document of this many is held out, or the last 1/20 of each."""
BLOCK_BYTES = 1 << 20


def held_out(name: str) -> bool:
    """Whether the SHA-256 of a document's name puts it into the held-out part."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % ONE_IN == 0


def tail(text: "bytes | FileText") -> int:
    """The byte at which the held-out end of one document starts.

    This is the first line that starts in the last 5 %; where none does, the last line.
    A document of a single line is not cut: its length is returned.
    """
    size = len(text)
    mark = max(size - size // ONE_IN - 1, 0)
    # A newline at the very end starts no further line.
    stop = size - (text[max(size - 1, 0) : size] == b"\n")
    for start in range(mark, stop, BLOCK_BYTES):
        block = text[start : min(start + BLOCK_BYTES, stop)]
        if (newline := block.find(b"\n")) >= 0:
            return start + newline + 1
    while stop > 0:
        start = max(stop - BLOCK_BYTES, 0)
        if (newline := text[start:stop].rfind(b"\n")) >= 0:
            return start + newline + 1
        stop = start
    return size
