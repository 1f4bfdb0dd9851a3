"""JSON lines: an object on each line, with a text, or with a prompt and its answer."""

import bisect
import functools
import json
import pathlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, TypeVar, overload

from jaxpar.errors import UserError
from jaxpar.sources import fields
from jaxpar.sources.corpus import Document, Example, Lazy
from jaxpar.sources.files import Piece
from jaxpar.sources.text_files import TextFiles

FORMAT = 1
N_FIRST_LINES = 20
"""So many first lines decide which fields all lines have."""
T = TypeVar("T")


class Line(NamedTuple):
    """A line, with its file's name and its number there."""

    name: str
    number: int
    text: bytes

    @property
    def where(self) -> str:
        """File and line number, for messages."""
        return f"{self.name}, line {self.number}:"

    def record(self) -> dict[str, Any]:
        """The object on the line.

        Raises:
          UserError: it is not JSON, or not an object.
        """
        try:
            value = json.loads(self.text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.where} is not JSON ({error}).") from error
        if not isinstance(value, dict):
            raise UserError(
                f"{self.where} is not an object, but {type(value).__name__}; each line "
                'must be one, such as {"text": "..."}.'
            )
        return value


class JsonLines(TextFiles):
    """Files of JSON lines, each line a document or an example."""

    def documents(self) -> Mapping[str, Sequence[Document]]:
        field = self._field

        def document(line: Line) -> Document:
            text = fields.text_of(line.record(), field, line.where)
            return Document(line.name, text, line.number)

        return {
            part: self._read(lines, document)
            for part, lines in self._lines.items()
            if len(lines)
        }

    @property
    def has_examples(self) -> bool:
        """Whether any of the first lines is an example: then every line must be."""
        return any(fields.holds_examples(_text_fields(r)) for r in self._first_records)

    @property
    def has_only_examples(self) -> bool:
        return self.has_examples and self.text_field not in self._text_fields

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
        """As of plain text for examples, so that older runs of them can be resumed."""
        identity = super().identity()
        if self.has_only_examples:
            return identity
        return {**identity, "json_lines": FORMAT, "field": self._field}

    @functools.cached_property
    def _field(self) -> str:
        names = self._text_fields
        others = {name for record in self._first_records for name in record} - {*names}
        where = self._first_lines[0].where
        return fields.choose(self.text_field, names, where, sorted(others))

    @functools.cached_property
    def _text_fields(self) -> list[str]:
        """The fields that hold text in any of the first lines."""
        names = (name for r in self._first_records for name in _text_fields(r))
        return list(dict.fromkeys(names))

    @functools.cached_property
    def _first_records(self) -> list[dict[str, Any]]:
        return [line.record() for line in self._first_lines]

    @functools.cached_property
    def _first_lines(self) -> list[Line]:
        starts = (lines[:N_FIRST_LINES] for lines in self._lines.values())
        first = [line for start in starts for line in start][:N_FIRST_LINES]
        if not first:
            raise UserError(f"{self.source}: every line is blank; there is no record.")
        return first

    @functools.cached_property
    def _lines(self) -> dict[str, "Lines"]:
        return {part: Lines(pieces) for part, pieces in self.pieces.items()}


def _text_fields(record: Mapping[str, Any]) -> list[str]:
    return [name for name, value in record.items() if isinstance(value, str)]


class Lines(Sequence[Line]):
    """The lines of some pieces that are not blank; 16 bytes of memory for each.

    They are read when they are asked for, from a file that stays open for the next one.
    """

    def __init__(self, pieces: Sequence[Piece]):
        self._pieces = pieces
        self._open_file = functools.lru_cache(maxsize=1)(_open)
        self._starts, self._numbers = array("q"), array("q")
        # How many lines there are before each piece.
        self._before = [0]
        for piece in pieces:
            for start, number in _not_blank(piece):
                self._starts.append(start)
                self._numbers.append(number)
            self._before.append(len(self._starts))

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, i: int) -> Line: ...
    @overload
    def __getitem__(self, i: slice) -> list[Line]: ...
    def __getitem__(self, i: int | slice) -> Line | list[Line]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        piece = self._pieces[bisect.bisect(self._before, i) - 1]
        file = self._open_file(piece.path)
        file.seek(self._starts[i])
        return Line(piece.name, self._numbers[i], file.readline())


def _open(path: pathlib.Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _not_blank(piece: Piece) -> Iterator[tuple[int, int]]:
    """The start, in bytes, and the number of each line that is not blank."""
    start = piece.start
    with open(piece.path, "rb") as file:
        file.seek(start)
        for number, text in enumerate(file, piece.line):
            if start >= piece.stop:
                return
            if text.strip():
                yield start, number
            start += len(text)
