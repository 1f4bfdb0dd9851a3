"""The text that a tokenizer learns from, in pieces that take little memory."""

import codecs
import re
from collections.abc import Iterable, Iterator

from jaxpar.errors import UserError
from jaxpar.tokens.pieces import LongText

LEARN_BYTES = 100_000
"""Longer texts are learned from in pieces: the library needs 100 times its bytes, and
holds 256 of them."""
LONGEST_WORD = 16_000_000
"""A word of more characters is cut, too."""
BETWEEN_WORDS = re.compile(r"(?<=[^\W_])(?=[ \n][^\W_]|[。，、！？])")
"""Where a word ends for ByteLevel, whatever stands before or after: before a space or a
newline between letters or digits, and before punctuation of Chinese and Japanese."""


def first_pieces(texts: Iterable[LongText], limit: int) -> Iterator[str]:
    """The first whole texts that together reach `limit` bytes, in pieces of words.

    Raises:
      UserError: a text is not UTF-8; names the byte.
    """
    for text in texts:
        if limit <= 0:
            return
        limit -= len(text)
        yield from _words(text)


def _words(text: LongText) -> Iterator[str]:
    """A text, cut between words where it is longer than LEARN_BYTES.

    Merges are learned within words, so they are the same as those of the whole.
    """
    if len(text) <= LEARN_BYTES:
        yield utf8(text[:])
        return
    decoder, waiting, looked = codecs.getincrementaldecoder("utf-8")(), "", 0
    for start in range(0, len(text), LEARN_BYTES):
        is_last = start + LEARN_BYTES >= len(text)
        try:
            waiting += decoder.decode(text[start : start + LEARN_BYTES], final=is_last)
        except UnicodeDecodeError:
            utf8(text[:])  # Raises, and names the byte in the whole text.
        # From the last words on, so that pieces are about as long as blocks.
        first = max(looked, len(waiting) - LEARN_BYTES // 10, 0)
        found = BETWEEN_WORDS.search(waiting, first)
        looked = len(waiting) - 2
        cut = found.start() if found else 0
        if not cut and len(waiting) > LONGEST_WORD:
            cut = len(waiting)
        if cut:
            yield waiting[:cut]
            waiting, looked = waiting[cut:], 0
    if waiting:
        yield waiting


def utf8(text: bytes) -> str:
    """The text, decoded.

    Raises:
      UserError: it is not UTF-8; names the byte.
    """
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"Text is not UTF-8 at byte {error.start}; BPE reads UTF-8, "
            "tokenizer=Bytes() any bytes."
        ) from error
