"""CSV and TSV files: each row is a document, or a prompt with its answer."""

import csv
import functools
import itertools
import pathlib
from collections.abc import Iterator, Sequence

from jaxpar import cache
from jaxpar.errors import UserError
from jaxpar.files import scanned
from jaxpar.files.json_records import RECORD_BYTES
from jaxpar.sources import patterns
from jaxpar.sources.parquet import ParquetFiles

FORMAT = 1
TABLE = "rows.parquet"
ROWS = 1_000
"""So many rows are in memory at a time."""


class DelimitedFiles(ParquetFiles):
    """Tables of text, which are written once as Parquet into the cache.

    The first line names the columns. Cells of .csv may be in double quotes; in .tsv
    nothing is a quote, and no cell holds a tab or a line's end.
    """

    hint = (
        " The first line names the columns; of a file without such a line, "
        "--data.text-field 2 reads column 2."
    )

    def find(self) -> list[tuple[str, pathlib.Path]]:
        return [(file.name, _as_parquet(file, self.text_field)) for file in self._files]

    def digests(self) -> list[list[str]]:
        return [[file.name, file.digest] for file in self._files]

    @functools.cached_property
    def _files(self) -> Sequence[scanned.File]:
        return scanned.scan(patterns.matching(self.name))


def _as_parquet(file: scanned.File, wanted: str) -> pathlib.Path:
    number = wanted if wanted.isdigit() else None
    is_tsv = file.name.lower().endswith(".tsv")
    key = cache.key(delimited=FORMAT, content=file.digest, tsv=is_tsv, number=number)

    def build(directory: pathlib.Path) -> None:
        import pyarrow
        import pyarrow.parquet

        rows = _rows(file, is_tsv)
        if (names := next(rows, None)) is None:
            raise UserError(f"{file.path} holds nothing but blank lines; leave it out.")
        if number and number not in names:
            rows = itertools.chain([names], rows)
            names = [str(i) for i in range(1, len(names) + 1)]
        if len({*names}) < len(names):
            raise UserError(f"{file.path} has two columns of one name: {names}.")
        schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
        with pyarrow.parquet.ParquetWriter(directory / TABLE, schema) as writer:
            while some := [*itertools.islice(rows, ROWS)]:
                columns = [*map(list, zip(*some, strict=True))]
                writer.write_table(pyarrow.table(columns, schema=schema))

    return cache.build_once(cache.root() / "tables" / key, build) / TABLE


def _rows(file: scanned.File, is_tsv: bool) -> Iterator[list[str]]:
    """The rows that are not blank.

    Raises:
      UserError: one has more or fewer cells than the first, or a quote has no end.
    """
    csv.field_size_limit(RECORD_BYTES)
    how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if is_tsv else {}
    n = 0
    with open(file.path, encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, strict=True, **how)
        try:
            for row in filter(None, reader):
                n = n or len(row)
                if len(row) != n:
                    raise csv.Error(f"it has {len(row)} cells, and the first line {n}")
                yield row
        except csv.Error as error:
            raise UserError(
                f"{file.path}, line {reader.line_num}: {error}; write the file again, "
                'or read it as plain text with --data.text-field "".'
            ) from error
