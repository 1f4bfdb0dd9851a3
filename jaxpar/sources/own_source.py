"""Errors of a source from outside the package, with the source and the record."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from jaxpar.errors import JaxparError, UserError
from jaxpar.files import slow_reads
from jaxpar.files.file_text import FileText
from jaxpar.files.scanned import BLOCK_BYTES, fault_of_utf8
from jaxpar.sources.corpus import Corpus, Document


@contextlib.contextmanager
def named(owner: Any, place: str = "") -> Iterator[None]:
    """Names the source in errors that arise inside, if it is not of this package.

    owner: the corpus, or the configuration that opens it. place: the record, if any.

    Raises:
      UserError: another error was raised by a user's own class.
    """
    try:
        yield
    except JaxparError:
        raise
    except Exception as error:  # A source of the user's own raises anything.
        kind = type(owner)
        if kind.__module__.partition(".")[0] == "jaxpar":
            raise
        name = getattr(owner, "source", None) or kind.__module__
        raise UserError(
            f"{kind.__name__} ({name}){place and f', {place}'}: "
            f"{type(error).__name__}: {error}"
        ) from error


def text_of(
    corpus: Corpus,
    part: str,
    documents: Sequence[Document],
    i: int,
    *,
    must_be_utf8: bool = False,
) -> bytes | FileText:
    """The text of one document; one that stays in its file was checked before.

    must_be_utf8: whether the tokenizer can read no other bytes.

    Raises:
      UserError: it is no bytes, or not UTF-8, or a user's own corpus cannot give it.
    """
    place = f"document {i} of the part {part!r}"
    with named(corpus, place):
        with slow_reads.said(f"{corpus.source}: {place}"):
            document = documents[i]
        text = document.text
        if isinstance(text, FileText):
            return text
        what = f"{corpus.source}, {place} ({document.name}): its text is"
        if not isinstance(text, bytes):
            kind = type(text).__name__
            raise UserError(f"{what} of type {kind}; it must be bytes, in UTF-8.")
        if must_be_utf8 and (fault := _fault_of_utf8(text)) is not None:
            how = "tokenizer=Bytes() reads any bytes"
            raise UserError(f"{what} not UTF-8 at byte {fault}; {how}.")
        return text


def _fault_of_utf8(text: bytes) -> int | None:
    """Where a text stops being UTF-8; None where all of it is.

    It is decoded in blocks, so that a long text takes no multiple of its size.
    """
    starts = range(0, len(text), BLOCK_BYTES)
    return fault_of_utf8(text[start : start + BLOCK_BYTES] for start in starts)
