"""Where the records of a file are: on the disk where they are many."""

import bisect
import io
import json
import operator
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from jaxpar import cache
from jaxpar.errors import UserError
from jaxpar.files.json_records import RECORD_BYTES
from jaxpar.files.scanned import File
from jaxpar.tokens.block_checksums import CheckedFile, ChecksumWriter

FORMAT = 1
BLOCK_BYTES = 1 << 20
STORED_BYTES = 16 << 20
"""The index of a file of so many bytes is written to the cache."""
BLOCK_ROWS = 1 << 12
ROWS, FACTS = "rows.bin", "facts.json"
BLANK = np.frombuffer(b" \t\n\r\x0b\x0c", np.uint8)
Row = tuple[int, int]


class Index(Sequence[Row]):
    """The start, in bytes, and the line of each record; a block is in memory."""

    def __init__(self, rows: np.ndarray | CheckedFile, *, is_array: bool):
        """rows: int64 [n, 2], or a file with these.

        is_array: whether the records are items of one array; others have lines.
        """
        self.is_array = is_array
        self._rows, self._first, self._block = rows, 0, []
        self._n = len(rows) if isinstance(rows, np.ndarray) else rows.size // 16

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> list[Row]: ...
    def __getitem__(self, i: int | slice) -> Row | list[Row]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(self._n))]
        i = range(self._n)[i]
        if not 0 <= i - self._first < len(self._block):
            self._first = i - i % BLOCK_ROWS
            self._block = self._read(self._first).tolist()
        start, line = self._block[i - self._first]
        return start, line

    def place_of(self, start: int) -> int:
        """The number of the first record that starts there or later."""
        return bisect.bisect_left(self, start, key=operator.itemgetter(0))

    def _read(self, first: int) -> np.ndarray:
        stop = min(first + BLOCK_ROWS, self._n)
        if isinstance(self._rows, np.ndarray):
            return self._rows[first:stop]
        raw = self._rows.read(16 * first, 16 * stop)
        return np.frombuffer(raw, "<i8").reshape(-1, 2)


def index_of(rows: Iterable[np.ndarray], file: File, *, is_array: bool) -> Index:
    """The index of a file with some rows, which come in blocks of int64 [n, 2].

    They are not asked for where the index of the same content has been written before.
    """
    if file.size < STORED_BYTES:
        found = np.concatenate([np.zeros((0, 2), np.int64), *rows])
        return Index(found, is_array=is_array)

    def build(directory: pathlib.Path) -> None:
        with ChecksumWriter(directory / ROWS) as stored:
            for block in rows:
                stored.write(block.astype("<i8").tobytes())
        (directory / FACTS).write_text(json.dumps(stored.facts))

    key = cache.key(index=FORMAT, content=file.digest, is_array=is_array)
    directory = cache.build_once(cache.root() / "indices" / key, build)
    facts = json.loads((directory / FACTS).read_text())
    stored = CheckedFile(directory / ROWS, facts, preparation=directory)
    return Index(stored, is_array=is_array)


def lines_of(path: pathlib.Path, name: str) -> Iterator[np.ndarray]:
    """The start and the number of each line that is not blank, in blocks.

    Raises:
      UserError: a line is longer than RECORD_BYTES; name is the file's, for that.
    """
    rest, at, n_lines = b"", 0, 0
    try:
        file = open(path, "rb", buffering=0)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    with file:
        while block := file.read(BLOCK_BYTES):
            text = rest + block
            stop = text.rfind(b"\n") + 1
            if max(len(text) - stop, stop) > RECORD_BYTES:
                _refuse_long(text, name, n_lines)
            rest = text[stop:]
            yield _rows(text[:stop], at, n_lines)
            n_lines += text.count(b"\n")
            at += stop
    if rest:
        yield _rows(rest + b"\n", at, n_lines)


def _rows(lines: bytes, at: int, n_before: int) -> np.ndarray:
    """The rows of whole lines that start at some byte, after so many others."""
    raw = np.frombuffer(lines, np.uint8)
    ends = np.flatnonzero(raw == ord("\n")) + 1
    starts = np.concatenate([np.zeros(1, np.int64), ends])[:-1]
    keep = np.ones(len(starts), bool)
    for i in np.flatnonzero(np.isin(raw[starts], BLANK)):
        keep[i] = bool(lines[starts[i] : ends[i]].strip())
    numbers = np.arange(len(starts)) + n_before + 1
    return np.stack([starts + at, numbers], axis=1)[keep]


def _refuse_long(text: bytes, name: str, n_before: int) -> None:
    for number, line in enumerate(io.BytesIO(text), n_before + 1):
        if len(line) > RECORD_BYTES:
            raise UserError(
                f"{name}, line {number}: has more than {RECORD_BYTES:,} "
                "bytes, the most that a line of JSON may have; write its text as "
                "several records, or as a file of plain text."
            )
