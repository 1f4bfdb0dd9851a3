"""Plain text files: each is a document."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxpar import cache
from jaxpar.files import long_json
from jaxpar.files.scanned import (
    File,
    Piece,
    held_out_whole,
    scan,
    split_by_name,
    tail_of_file,
    whole_files,
)
from jaxpar.sources import patterns
from jaxpar.sources.corpus import EVERY, WHOLE, Corpus, Document, Lazy

READERS = ("tensorflow-datasets", "array-record")
"""They once wrote the files down before they were read: prepared data is named so."""


class TextFiles(Corpus):
    """UTF-8 files that a glob finds."""

    def find(self) -> Mapping[str, pathlib.Path]:
        """The files by their names, whose hashes decide what is held out."""
        return patterns.matching(self.name)

    def documents(self) -> Mapping[str, Sequence[Document]]:
        return {part: _in_place(pieces) for part, pieces in self.pieces.items()}

    def fingerprint(self) -> str:
        return long_json.key(**self.identity())

    def versioned_fingerprint(self, versions: Mapping[str, str] | None = None) -> str:
        found = cache.versions(*READERS, known=versions)
        return long_json.key(**self.identity(), versions=found)

    def identity(self) -> dict[str, Any]:
        """What the fingerprint is a hash of: files and pieces."""

        def piece(pieces: Sequence[Piece], i: int) -> list[Any]:
            one = pieces[i]
            return [one.name, one.start, one.stop]

        def file(i: int) -> list[str]:
            one = self.scanned[i]
            return [one.name, one.digest]

        pieces = {
            part: Lazy(range(len(some)), functools.partial(piece, some))
            for part, some in self.pieces.items()
        }
        return {"files": Lazy(range(len(self.scanned)), file), "pieces": pieces}

    def tail(self, file: File) -> tuple[int, int]:
        """Where the held-out end of a file starts, in bytes, and its line's number."""
        return tail_of_file(file.path)

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
        if held_out_whole(self.scanned):
            return "whole files, by the hash of their names"
        return "the end of each file"

    @functools.cached_property
    def paths(self) -> Mapping[str, pathlib.Path]:
        """The files, including the empty ones."""
        return self.find()

    @functools.cached_property
    def scanned(self) -> Sequence[File]:
        """The files that are not empty, each of them read and checked."""
        return scan(self.paths)

    @functools.cached_property
    def pieces(self) -> dict[str, Sequence[Piece]]:
        """The pieces of files in each part; a part without any has no entry."""
        if self.parts == WHOLE:
            by_part = {EVERY: whole_files(self.scanned)}
        else:
            by_part = split_by_name(self.scanned, self.tail)
        return {part: pieces for part, pieces in by_part.items() if pieces}


def _in_place(pieces: Sequence[Piece]) -> Lazy[Document]:
    def read(i: int) -> Document:
        piece = pieces[i]
        return Document(piece.name, piece.read(), piece.line)

    return Lazy(range(len(pieces)), read)
