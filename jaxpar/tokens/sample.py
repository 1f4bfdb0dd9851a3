"""Which part of a large corpus a tokenizer learns from."""

import hashlib
from collections.abc import Callable, Iterator

from jaxpar.tables import for_messages
from jaxpar.tokens.pieces import LongText

SAMPLE_BYTES = 200_000_000
"""A tokenizer learns from all of a corpus that is not larger, and else from so much."""
STRETCH_BYTES = 1_000_000
"""About so much text is drawn at a time."""
N_MEASURED = 1_000
"""The first documents, whose mean size decides how many make a stretch."""
Read = Callable[[int], LongText]


def texts_to_learn(n: int, read: Read, *, most: int) -> Iterator[LongText]:
    """The n documents; of more than SAMPLE_BYTES, stretches that a hash has drawn.

    read: gives document i. most: bytes that the tokenizer learns from at most, of which
    it takes the first; where these are no more than SAMPLE_BYTES, nothing is drawn.
    """
    if most <= SAMPLE_BYTES or not _has_more(n, read):
        return map(read, range(n))
    print(
        f"the tokenizer learns from {SAMPLE_BYTES // 1_000_000} MB of the text to "
        "train on, drawn by hash",
        file=for_messages(),
        flush=True,
    )
    return drawn(n, read)


def drawn(n: int, read: Read) -> Iterator[bytes]:
    """Stretches in the order of a hash of their numbers, about SAMPLE_BYTES in all.

    A stretch is some documents, one after another, or the whole lines in one of several
    equal parts of a document; of each document it has at most STRETCH_BYTES. How many
    make a stretch follows from the first N_MEASURED: where later ones are much longer,
    all stretches together may have less than SAMPLE_BYTES.
    """
    measured = range(min(n, N_MEASURED))
    mean = max(sum(len(read(i)) for i in measured) / len(measured), 1)
    together = max(round(STRETCH_BYTES / mean), 1)
    n_parts = max(round(mean / STRETCH_BYTES), 1)
    left = SAMPLE_BYTES
    for stretch in sorted(range(-(-n // together) * n_parts), key=_hash):
        first, part = divmod(stretch, n_parts)
        for i in range(first * together, min((first + 1) * together, n)):
            text = _lines(read(i), part, n_parts)
            left -= len(text)
            yield text
        if left <= 0:
            return


def _lines(text: LongText, part: int, n_parts: int) -> bytes:
    """The whole lines in one part of a text, at most STRETCH_BYTES of them."""
    size = len(text)
    start, stop = size * part // n_parts, size * (part + 1) // n_parts
    block = text[start : min(stop, start + STRETCH_BYTES)]
    if start:
        block = block[block.find(b"\n") + 1 :]
    if start + STRETCH_BYTES < stop or stop < size:
        block = block[: block.rfind(b"\n") + 1] or block
    # Where there is no line, a character may be cut.
    return block.decode("utf-8", "ignore").encode()


def _has_more(n: int, read: Read) -> bool:
    """Whether documents have more than SAMPLE_BYTES together."""
    size = 0
    for i in range(n):
        size += len(read(i))
        if size > SAMPLE_BYTES:
            return True
    return False


def _hash(number: int) -> bytes:
    return hashlib.sha256(f"stretch {number}".encode()).digest()
