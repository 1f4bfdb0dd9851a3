"""Parquet files: a row is a document, or a prompt with its answer."""

import bisect
import functools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from jaxpar import cache
from jaxpar.errors import UserError
from jaxpar.sources import fields, files
from jaxpar.sources.corpus import (
    WHOLE,
    Corpus,
    Document,
    Example,
    Lazy,
    chosen_numbers,
    divide,
)

FORMAT = 1
T = TypeVar("T")


class Group(NamedTuple):
    """One row group of a file; its rows are numbered from `first` over all files."""

    name: str
    path: pathlib.Path
    index: int
    first: int
    n_rows: int


class ParquetFiles(Corpus):
    """Files of rows with columns of text, read one row group at a time."""

    def documents(self) -> Mapping[str, Sequence[Document]]:
        field = self._field

        def document(i: int) -> Document:
            row, where = self._row(i, (field,))
            return Document(where, fields.text_of(row, field, where))

        every = Lazy(range(self._n_rows), document)
        return {WHOLE[0]: every} if self.parts == WHOLE else divide(every)

    @property
    def has_examples(self) -> bool:
        return fields.holds_examples(self._text_columns)

    @property
    def has_only_examples(self) -> bool:
        return self.has_examples and self.text_field not in self._text_columns

    def examples(self, part: str) -> Sequence[Example]:
        def example(i: int) -> Example:
            row, where = self._row(i, (fields.PROMPT, fields.ANSWER))
            return fields.example_of(row, where)

        return Lazy(self._rows_of(part), example)

    def n_records(self, part: str) -> int:
        return len(
            self._rows_of(part) if self.has_only_examples else self.by_part[part]
        )

    def _rows_of(self, part: str) -> Sequence[int]:
        held = chosen_numbers(self._n_rows)
        if part == "heldout":
            return sorted(held)
        rest = () if part == WHOLE[0] else held
        return [i for i in range(self._n_rows) if i not in rest]

    def fingerprint(self) -> str:
        return cache.key(
            parquet=FORMAT,
            field=None if self.has_only_examples else self._field,
            files=[[name, cache.sha256(path)] for name, path in self._found],
            versions=cache.versions("pyarrow"),
            parts=self.parts,
        )

    @functools.cached_property
    def _found(self) -> list[tuple[str, pathlib.Path]]:
        return sorted(files.matching(self.name).items())

    @functools.cached_property
    def _groups(self) -> list[Group]:
        groups, first = [], 0
        for name, path in self._found:
            metadata = _open(path).metadata
            for index in range(metadata.num_row_groups):
                n_rows = metadata.row_group(index).num_rows
                if n_rows:
                    groups.append(Group(name, path, index, first, n_rows))
                    first += n_rows
        if not groups:
            raise UserError(f"{self.source} has no rows.")
        return groups

    @functools.cached_property
    def _n_rows(self) -> int:
        return self._groups[-1].first + self._groups[-1].n_rows

    @functools.cached_property
    def _text_columns(self) -> list[str]:
        """The columns that hold text in every file."""
        first, *others = (set(_text_columns(path)) for _, path in self._found)
        return sorted(first.intersection(*others))

    @functools.cached_property
    def _field(self) -> str:
        name, path = self._found[0]
        others = sorted({*_open(path).schema_arrow.names} - {*self._text_columns})
        return fields.choose(self.text_field, self._text_columns, name, others)

    def _row(self, i: int, columns: tuple[str, ...]) -> tuple[dict[str, Any], str]:
        """A row's values in some columns, and where it stands."""
        group = self._groups[bisect.bisect(self._firsts, i) - 1]
        table = self._table(group, columns)
        at = i - group.first
        row = {name: table.column(name)[at].as_py() for name in columns}
        return row, f"{group.name}, row {self._row_in_file(group) + at}"

    def _row_in_file(self, group: Group) -> int:
        return group.first - next(g.first for g in self._groups if g.path == group.path)

    @functools.cached_property
    def _firsts(self) -> list[int]:
        return [group.first for group in self._groups]

    @functools.cached_property
    def _table(self) -> Callable[[Group, tuple[str, ...]], Any]:
        """Reads a row group; the last two read are kept, since rows come in order."""

        @functools.lru_cache(maxsize=2)
        def read(group: Group, columns: tuple[str, ...]) -> Any:
            try:
                return _open(group.path).read_row_group(group.index, [*columns])
            except Exception as error:  # pyarrow raises its own types and OSError.
                raise _damaged(group.path, error) from error

        return read


def _text_columns(path: pathlib.Path) -> Iterator[str]:
    import pyarrow.types as types

    for column in _open(path).schema_arrow:
        if types.is_string(column.type) or types.is_large_string(column.type):
            yield column.name


def _open(path: pathlib.Path) -> Any:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except Exception as error:  # pyarrow raises its own types and OSError.
        raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"{path} cannot be read as Parquet: {cause}")
