"""Parquet files: each row is a document, or a prompt with its answer."""

import bisect
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxpar import cache
from jaxpar.errors import UserError
from jaxpar.files import kept, split
from jaxpar.sources import fields, patterns
from jaxpar.sources.corpus import (
    Corpus,
    Document,
    Example,
    Lazy,
    all_numbers_but,
    held_out_numbers,
    parts_of,
    split_by_number,
)

FORMAT, ARROW = 1, ".arrow"


class Group(NamedTuple):
    """One row group of a file; row groups and rows are numbered from 0."""

    name: str
    path: pathlib.Path
    number: int
    """Of the row group in its file."""
    first: int
    """Number of its first row, over all files."""
    first_in_file: int
    """Number of its first row in its file."""
    n_rows: int


class Columns(NamedTuple):
    """The names of one file's columns."""

    name: str
    texts: list[str]
    others: list[str]


class ParquetFiles(Corpus):
    """Files of rows with columns of text, read one row group at a time."""

    hint = ""
    """More to say where no column of text can be chosen."""

    def documents(self) -> Mapping[str, Sequence[Document]]:
        field = self._field

        def document(i: int) -> Document:
            row, where = self._row(i, (field,))
            return Document(where, fields.text_of(row, field, where))

        splits = {name: Lazy(rows, document) for name, rows in self.splits().items()}
        return parts_of(splits, self.parts, self.source, split_by_number)

    def find(self) -> list[tuple[str, pathlib.Path]]:
        """The files with their names, in order."""
        return sorted(patterns.matching(self.name).items())

    def digests(self) -> list[list[str]]:
        """The name of each file, and a hash of its content."""

        def digest(path: pathlib.Path) -> str:
            return kept.answer({"what": "sha256"}, path, lambda: cache.sha256(path))

        return [[name, digest(path)] for name, path in self.paths]

    def splits(self) -> dict[str, Sequence[int]]:
        """The numbers, over all files, of the rows of each split that has a name."""
        return {"train": range(self._n_rows)}

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

        return Lazy(self._rows[part], example)

    def n_records(self, part: str) -> int:
        return len(self._rows.get(part, ()))

    @functools.cached_property
    def _rows(self) -> dict[str, Sequence[int]]:
        """The rows of each part's examples, by their numbers over all files."""
        return parts_of(self.splits(), self.parts, self.source, _divided)

    def fingerprint(self) -> str:
        return cache.key(**self._identity)

    def versioned_fingerprint(self, versions: Mapping[str, str] | None = None) -> str:
        found = cache.versions("pyarrow", known=versions)
        return cache.key(**self._identity, versions=found)

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return {
            "parquet": FORMAT,
            "field": None if self.has_only_examples else self._field,
            "files": self.digests(),
            "parts": self.parts,
        }

    @functools.cached_property
    def paths(self) -> list[tuple[str, pathlib.Path]]:
        """What `find` returns, called once."""
        return self.find()

    @functools.cached_property
    def groups(self) -> list[Group]:
        """The row groups that have rows."""
        groups, first = [], 0
        for name, path in self.paths:
            first_in_file = 0
            for number, n_rows in enumerate(_open(path).sizes):
                if n_rows:
                    group = Group(name, path, number, first, first_in_file, n_rows)
                    groups.append(group)
                first, first_in_file = first + n_rows, first_in_file + n_rows
        if not groups:
            raise UserError(f"{self.source} has no rows.")
        return groups

    @functools.cached_property
    def _n_rows(self) -> int:
        return self.groups[-1].first + self.groups[-1].n_rows

    @functools.cached_property
    def _columns(self) -> list[Columns]:
        """Of every file that has rows: writers do not know an empty column's type."""
        paths = dict.fromkeys((group.name, group.path) for group in self.groups)
        return [_columns(name, path) for name, path in paths]

    @functools.cached_property
    def _text_columns(self) -> list[str]:
        """The columns that hold text in every file."""
        first, *others = (set(columns.texts) for columns in self._columns)
        return sorted(first.intersection(*others))

    @functools.cached_property
    def _field(self) -> str:
        wanted, names = self.text_field, self._text_columns
        having = [c.name for c in self._columns if wanted in c.texts]
        lacking = [c.name for c in self._columns if wanted not in c.texts]
        if having and lacking:
            raise UserError(
                f"{lacking[0]} has no text in a column {wanted!r}, and {having[0]} "
                "has; give files with the same columns, or name a column that holds "
                f"text in all of them with --data.text-field: {names}."
            )
        first = self._columns[0]
        alike = all({*c.texts} == {*names} for c in self._columns)
        where = first.name if alike else f"{self.source}, in every file,"
        return fields.text_field_of(wanted, names, where, first.others, self.hint)

    def _row(self, i: int, columns: tuple[str, ...]) -> tuple[dict[str, Any], str]:
        """A row's values in some columns, and where it is."""
        group = self.groups[bisect.bisect(self._firsts, i) - 1]
        table, k = self._read_group(group, columns), i - group.first
        where = f"{group.name}, row {group.first_in_file + k}"
        try:
            return {name: table.column(name)[k].as_py() for name in columns}, where
        except UnicodeDecodeError as error:
            raise UserError(
                f"{where} is not UTF-8 at byte {error.start} of its text; write the "
                "file again."
            ) from error

    @functools.cached_property
    def _firsts(self) -> list[int]:
        return [group.first for group in self.groups]

    @functools.cached_property
    def _read_group(self) -> Callable[[Group, tuple[str, ...]], Any]:
        """Reads a row group; the last two are kept, since rows are read in order."""

        @functools.lru_cache(maxsize=2)
        def read(group: Group, columns: tuple[str, ...]) -> Any:
            try:
                return _open(group.path).read(group.number, [*columns])
            except Exception as error:  # pyarrow raises its own types and OSError.
                raise _damaged(group.path, error) from error

        return read


def _columns(name: str, path: pathlib.Path) -> Columns:
    schema = _open(path).schema
    texts = [column.name for column in schema if _is_text(column.type)]
    return Columns(name, texts, sorted({*schema.names} - {*texts}))


def _is_text(data_type: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(data_type):
        return _is_text(data_type.value_type)
    checks = (types.is_string, types.is_large_string, types.is_string_view)
    return any(check(data_type) for check in checks)


def _divided(rows: Sequence[int]) -> dict[str, Sequence[int]]:
    """Both parts of examples, by the hash of their numbers."""
    n = len(rows)
    # Where the hash chooses none, the last ones: an example is never cut in two.
    heldout = held_out_numbers(n) or range(n - max(n // split.ONE_IN, 1), n)
    train, read = all_numbers_but(heldout, n), rows.__getitem__
    return {"train": Lazy(train, read), "heldout": Lazy(heldout, read)}


class Opened(NamedTuple):
    """A file of rows: its columns, the rows of each group, and how one is read."""

    schema: Any
    sizes: list[int]
    read: Callable[[int, list[str]], Any]


def _open(path: pathlib.Path) -> Opened:
    """A file of Parquet, or a stream of Arrow, which is one group.

    Raises:
      UserError: the file is damaged, or is neither.
    """
    import pyarrow.parquet

    try:
        if path.suffix == ARROW:
            stream = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path)))
            table = stream.read_all()
            read = table.select
            return Opened(table.schema, [table.num_rows], lambda _, names: read(names))
        file = pyarrow.parquet.ParquetFile(path)
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        sizes = [group.num_rows for group in groups]
        return Opened(file.schema_arrow, sizes, file.read_row_group)
    except Exception as error:  # pyarrow raises its own types and OSError.
        raise _damaged(path, error) from error


def _damaged(path: pathlib.Path, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{path} cannot be read as {path.suffix.lstrip('.').title()}: {reason}"
    )
