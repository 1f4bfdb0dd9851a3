"""Plain text files: each is a document."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpar import cache
from jaxpar.errors import UserError
from jaxpar.sources import files
from jaxpar.sources.corpus import WHOLE, Corpus, Document, Lazy

READERS = ("tensorflow-datasets", "array-record")
STREAMED_BYTES = 1_000_000_000
"""Files of more bytes than this, all together, are not copied to TFDS records."""
LARGE_BYTES = 16_000_000
"""Nor are they where one has more than this: a record takes several times its size."""


class TextFiles(Corpus):
    """UTF-8 files that a glob finds."""

    def find(self) -> dict[str, pathlib.Path]:
        """The files by their names, whose hashes decide what is held out."""
        return files.matching(self.name)

    def documents(self) -> Mapping[str, Sequence[Document]]:
        sizes = [file.size for file in self.scanned]
        if sum(sizes) > STREAMED_BYTES or max(sizes) > LARGE_BYTES:
            return {part: _in_place(pieces) for part, pieces in self.pieces.items()}
        return _through_records(self.versioned_fingerprint(), self.pieces)

    def fingerprint(self) -> str:
        return cache.key(**self.identity())

    def versioned_fingerprint(self, versions: Mapping[str, str] | None = None) -> str:
        return cache.key(
            **self.identity(),
            versions=cache.versions(*READERS, known=versions),
        )

    def identity(self) -> dict[str, Any]:
        """What the fingerprint is a hash of: files and pieces."""
        pieces = {
            part: [[p.name, p.start, p.stop] for p in pieces]
            for part, pieces in self.pieces.items()
        }
        return {
            "files": [[file.name, file.digest] for file in self.scanned],
            "pieces": pieces,
        }

    def tail(self, file: files.File) -> tuple[int, int]:
        """Where the held-out end of a file starts, in bytes, and its line's number."""
        return files.tail_of_file(file.path)

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "empty_files": len(self.paths) - len(self.scanned),
            "held_out": self._held_out,
        }

    @property
    def _held_out(self) -> str:
        """What is held out, in words."""
        if self.parts == WHOLE:
            return "nothing"
        if files.held_out_whole(self.scanned):
            return "whole files, by the hash of their names"
        return "the end of each file"

    @functools.cached_property
    def paths(self) -> dict[str, pathlib.Path]:
        """The files, including the empty ones."""
        return self.find()

    @functools.cached_property
    def scanned(self) -> list[files.File]:
        """The files that are not empty, each of them read and checked."""
        return files.scan(self.paths)

    @functools.cached_property
    def pieces(self) -> dict[str, list[files.Piece]]:
        """The pieces of files in each part; a part without any has no entry."""
        if self.parts == WHOLE:
            by_part = {WHOLE[0]: files.whole_files(self.scanned)}
        else:
            by_part = files.split_by_name(self.scanned, self.tail)
        return {part: pieces for part, pieces in by_part.items() if pieces}


def _in_place(pieces: Sequence[files.Piece]) -> Lazy[Document]:
    def read(i: int) -> Document:
        piece = pieces[i]
        return Document(piece.name, piece.read(), piece.line)

    return Lazy(range(len(pieces)), read)


def _through_records(
    fingerprint: str, pieces: dict[str, list[files.Piece]]
) -> dict[str, Lazy[Document]]:
    """The documents, read from ArrayRecord files that TFDS writes into the cache."""
    from jaxpar.sources import records

    path = cache.build_once(
        cache.root() / "records" / fingerprint,
        functools.partial(records.write, splits=pieces),
    )
    return {
        part: _records(records.read(path, part), f"{path}, split {part}")
        for part in pieces
    }


def _records(examples: Sequence[Mapping[str, Any]], place: str) -> Lazy[Document]:
    def read(i: int) -> Document:
        example = read_record(examples, i, place)
        name = as_bytes(example["path"]).decode()
        return Document(name, as_bytes(example["text"]), int(example["line"]))

    return Lazy(range(len(examples)), read)


def read_record(
    examples: Sequence[Mapping[str, Any]], i: int, place: str
) -> Mapping[str, Any]:
    """One example of a TFDS data source; `place` names it in messages.

    Raises:
      UserError: it cannot be read.
    """
    try:
        return examples[i]
    except Exception as error:  # The record reader's own types.
        raise UserError(
            f"{place}, example {i} cannot be read: {error} Copy the dataset again, or "
            "delete it and prepare it again."
        ) from error


def as_bytes(text: bytes | str) -> bytes:
    """A text in UTF-8; TFDS returns bytes or str."""
    return text.encode() if isinstance(text, str) else bytes(text)
