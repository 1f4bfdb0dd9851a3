"""A text in the pieces that are tokenised each by itself."""

from collections.abc import Iterator
from typing import Protocol

PIECE_BYTES = 1_000_000
"""Longer texts are cut; prepared tokens depend on where, so it stays as it is."""


class LongText(Protocol):
    """A text of which slices are read: bytes, or a stretch of a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, where: slice, /) -> bytes: ...


def pieces(text: LongText, start: int = 0) -> Iterator[bytes]:
    """A text from a piece's start on, cut at line ends where it is longer."""
    size = len(text)
    while size - start > PIECE_BYTES:
        # With the byte after it, which may be in the middle of a character.
        block = text[start : start + PIECE_BYTES + 1]
        stop = block.rfind(b"\n", 0, PIECE_BYTES) + 1
        if stop <= 0:
            stop = PIECE_BYTES
            while block[stop] & 0xC0 == 0x80:  # In the middle of a UTF-8 character.
                stop -= 1
        yield block[:stop]
        start += stop
    if start < size:
        yield text[start:size]
