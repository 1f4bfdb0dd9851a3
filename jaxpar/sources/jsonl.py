"""JSON lines: an object on each line, with a text, or with a prompt and its answer."""

import bisect
import functools
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from jaxpar.errors import UserError
from jaxpar.sources import fields
from jaxpar.sources.corpus import Document, Example, Lazy
from jaxpar.sources.files import Piece
from jaxpar.sources.text_files import TextFiles

FORMAT = 1
LOOKED_AT = 20
"""So many first lines say what the lines hold."""
T = TypeVar("T")


class Line(NamedTuple):
    """A line that starts at byte `start` of a file, and its number there."""

    piece: Piece
    start: int
    number: int

    @property
    def where(self) -> str:
        return f"{self.piece.name}, line {self.number}:"

    def record(self) -> dict[str, Any]:
        """The object on the line.

        Raises:
          UserError: it is not JSON, or not an object.
        """
        with open(self.piece.path, "rb") as file:
            file.seek(self.start)
            text = file.readline()
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UserError(f"{self.where} is no JSON ({error}).") from error
        if not isinstance(found, dict):
            raise UserError(
                f"{self.where} is no object, but {type(found).__name__}; each line must "
                'be one, such as {"text": "..."}.'
            )
        return found


class JsonLines(TextFiles):
    """Files of JSON lines, each line a document or an example."""

    def documents(self) -> Mapping[str, Sequence[Document]]:
        field = self._field

        def document(line: Line) -> Document:
            text = fields.text_of(line.record(), field, line.where)
            return Document(line.piece.name, text, line.number)

        return {
            part: self._read(lines, document)
            for part, lines in self._lines.items()
            if len(lines)
        }

    @property
    def has_examples(self) -> bool:
        """Whether any of the first lines is one: then all lines must be."""
        records = (line.record() for line in self._first_lines)
        return any(fields.holds_examples(_texts(record)) for record in records)

    @property
    def has_only_examples(self) -> bool:
        first = self._first_lines[0].record()
        return self.has_examples and self.text_field not in _texts(first)

    def examples(self, part: str) -> Sequence[Example]:
        def example(line: Line) -> Example:
            return fields.example_of(line.record(), line.where)

        return self._read(self._lines[part], example)

    def n_records(self, part: str) -> int:
        return len(self._lines.get(part, ()))

    @staticmethod
    def _read(lines: "Lines", read: Callable[[Line], T]) -> Lazy[T]:
        return Lazy(range(len(lines)), lambda i: read(lines[i]))

    def identity(self) -> dict[str, Any]:
        """Of examples, as it has always been; documents are read in a newer way."""
        identity = super().identity()
        if self.has_only_examples:
            return identity
        return {**identity, "json_lines": FORMAT, "field": self._field}

    @functools.cached_property
    def _field(self) -> str:
        first = self._first_lines[0]
        record = first.record()
        names = _texts(record)
        others = sorted(record.keys() - {*names})
        return fields.choose(self.text_field, names, first.where, others)

    @functools.cached_property
    def _first_lines(self) -> list[Line]:
        lines = [line for part in self._lines.values() for line in part[:LOOKED_AT]]
        if not lines:
            raise UserError(f"{self.source}: every line is blank; there is no record.")
        return lines[:LOOKED_AT]

    @functools.cached_property
    def _lines(self) -> dict[str, "Lines"]:
        return {part: Lines(pieces) for part, pieces in self.pieces.items()}


def _texts(record: Mapping[str, Any]) -> list[str]:
    """The fields that hold text."""
    return [name for name, value in record.items() if isinstance(value, str)]


class Lines(Sequence[Line]):
    """The lines of some pieces that are not blank; 16 bytes of memory for each."""

    def __init__(self, pieces: Sequence[Piece]):
        self._pieces = pieces
        self._starts, self._numbers, counts = array("q"), array("q"), [0]
        for piece in pieces:
            for start, number in _not_blank(piece):
                self._starts.append(start)
                self._numbers.append(number)
            counts.append(len(self._starts))
        self._counts = counts

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        piece = self._pieces[bisect.bisect(self._counts, range(len(self))[i]) - 1]
        return Line(piece, self._starts[i], self._numbers[i])


def _not_blank(piece: Piece) -> Iterator[tuple[int, int]]:
    """Where each line that is not blank starts, and its number in the file."""
    start = piece.start
    with open(piece.path, "rb") as file:
        file.seek(start)
        for number, text in enumerate(file, piece.line):
            if start >= piece.stop:
                return
            if text.strip():
                yield start, number
            start += len(text)
