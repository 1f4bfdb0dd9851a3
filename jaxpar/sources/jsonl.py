"""JSON records: on each line or in an array, a text, or a prompt with its answer."""

import bisect
import functools
import pathlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar, overload

from jaxpar.errors import UserError
from jaxpar.files import json_records, split
from jaxpar.files.json_array import items_of
from jaxpar.files.json_records import Record
from jaxpar.files.line_index import Index, index_of, lines_of
from jaxpar.files.scanned import File, Piece
from jaxpar.sources import fields
from jaxpar.sources.corpus import Document, Example, Lazy
from jaxpar.sources.text_files import TextFiles

FORMAT = 1
N_FIRST_RECORDS = 20
"""So many first records decide which fields all of them have."""
T = TypeVar("T")


class JsonLines(TextFiles):
    """Files with an object on each line, or of one array of objects.

    Each object is a document or an example. Which form a file has is decided by its
    beginning (json_records.form_of), not by its name.
    """

    def documents(self) -> Mapping[str, Sequence[Document]]:
        field = self._field

        def document(record: Record) -> Document:
            text = fields.text_of(record.object(), field, record.where)
            return Document(record.name, text, record.line)

        return {
            part: self._read(records, document)
            for part, records in self._records.items()
            if len(records)
        }

    @property
    def has_examples(self) -> bool:
        """Whether any of the first records is an example: then each must be.

        It has a prompt and an answer; one that is no text is refused where it is read.
        """
        return any(fields.holds_examples(_filled(r)) for r in self._first_objects)

    @property
    def has_only_examples(self) -> bool:
        texts = map(_text_fields, self._first_objects)
        has_examples = any(map(fields.holds_examples, texts))
        return has_examples and self.text_field not in self._text_fields

    def examples(self, part: str) -> Sequence[Example]:
        def example(record: Record) -> Example:
            return fields.example_of(record.object(), record.where)

        return self._read(self._records[part], example)

    def n_records(self, part: str) -> int:
        return len(self._records.get(part, ()))

    @staticmethod
    def _read(records: "Records", read: Callable[[Record], T]) -> Lazy[T]:
        return Lazy(range(len(records)), lambda i: read(records[i]))

    def identity(self) -> dict[str, Any]:
        """As of plain text for examples in .jsonl, which older runs can resume so."""
        identity = super().identity()
        named = all(file.name.lower().endswith(".jsonl") for file in self.scanned)
        if self.has_only_examples and named and not any(self._forms.values()):
            return identity
        field = None if self.has_only_examples else self._field
        return {**identity, "json_lines": FORMAT, "field": field}

    def tail(self, file: File) -> tuple[int, int]:
        """The first item that starts in the last 5 % of an array, or its last item."""
        if not self._forms[file.path]:
            return super().tail(file)
        items = self._indices[file.path]
        first = items.place_of(file.size - file.size // split.ONE_IN)
        first = min(first, len(items) - 1)
        return items[first] if first > 0 else (file.size, 1)

    @functools.cached_property
    def _field(self) -> str:
        names = self._text_fields
        others = {name for each in self._first_objects for name in each} - {*names}
        where = self._first_records[0].where
        return fields.text_field_of(self.text_field, names, where, sorted(others))

    @functools.cached_property
    def _text_fields(self) -> list[str]:
        """The fields that hold text in any of the first records."""
        names = (name for each in self._first_objects for name in _text_fields(each))
        return list(dict.fromkeys(names))

    @functools.cached_property
    def _first_objects(self) -> list[dict[str, Any]]:
        return [record.object() for record in self._first_records]

    @functools.cached_property
    def _first_records(self) -> list[Record]:
        starts = (records[:N_FIRST_RECORDS] for records in self._records.values())
        first = [record for start in starts for record in start][:N_FIRST_RECORDS]
        if not first:
            raise UserError(f"{self.source}: every line is blank; there is no record.")
        return first

    @functools.cached_property
    def _records(self) -> dict[str, "Records"]:
        pieces = self.pieces.items()
        return {part: Records(some, self._indices) for part, some in pieces}

    @functools.cached_property
    def _forms(self) -> dict[pathlib.Path, bool]:
        """Whether each file is one array; others have a record on each line.

        Raises:
          UserError: a file begins with neither an array of objects nor an object on
            each line.
        """
        forms = {}
        for file in self.scanned:
            form = json_records.form_of(file.path)
            if form == json_records.OBJECT:
                raise UserError(
                    f"{file.path} begins with a JSON object of several lines, which "
                    f"is no record; {json_records.ADVICE}."
                )
            forms[file.path] = form == json_records.ARRAY
        return forms

    @functools.cached_property
    def _indices(self) -> dict[pathlib.Path, Index]:
        """Where the records of each file are.

        Raises:
          UserError: an array is damaged, or a line is too long.
        """
        indices = {}
        for file in self.scanned:
            is_array = self._forms[file.path]
            rows = (items_of if is_array else lines_of)(file.path, file.name)
            indices[file.path] = index_of(rows, file, is_array=is_array)
        return indices


def _text_fields(record: Mapping[str, Any]) -> list[str]:
    return [name for name, value in record.items() if isinstance(value, str)]


def _filled(record: Mapping[str, Any]) -> list[str]:
    return [name for name, value in record.items() if value is not None]


class Records(Sequence[Record]):
    """The records of some pieces of files.

    They are read when they are asked for, from a file that stays open for the next one.
    """

    def __init__(self, pieces: Sequence[Piece], indices: Mapping[pathlib.Path, Index]):
        """indices: where the records of each file are."""
        self._pieces, self._indices = pieces, indices
        self._open_file = functools.lru_cache(maxsize=1)(_open)
        # The number in its file of each piece's first record, and how many there are
        # in all pieces before it.
        self._firsts, self._before = array("q"), array("q", [0])
        for piece in pieces:
            index = indices[piece.path]
            first, stop = index.place_of(piece.start), index.place_of(piece.stop)
            self._firsts.append(first)
            self._before.append(self._before[-1] + stop - first)

    def __len__(self) -> int:
        return self._before[-1]

    @overload
    def __getitem__(self, i: int) -> Record: ...
    @overload
    def __getitem__(self, i: slice) -> list[Record]: ...
    def __getitem__(self, i: int | slice) -> Record | list[Record]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        p = bisect.bisect(self._before, i) - 1
        piece, index = self._pieces[p], self._indices[self._pieces[p].path]
        k = self._firsts[p] + i - self._before[p]
        start, line = index[k]
        file = self._open_file(piece.path)
        file.seek(start)
        if not index.is_array:
            return Record(piece.name, line, file.readline())
        is_last = i + 1 == self._before[p + 1]
        stop = piece.stop if is_last else index[k + 1][0]
        return Record(piece.name, line, file.read(stop - start), k + 1)


def _open(path: pathlib.Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
