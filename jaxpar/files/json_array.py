"""JSON files that are one array of objects: where each of its items is."""

import codecs
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

import numpy as np

from jaxpar.errors import UserError
from jaxpar.files.json_records import ADVICE, BOM, RECORD_BYTES, SPACE, Record

BLOCK_BYTES, BLOCK_ROWS = 1 << 20, 1 << 14


def items_of(path: pathlib.Path, name: str) -> Iterator[np.ndarray]:
    """The start, in bytes, and the line of each item of a file that is one array.

    They come in blocks, int64 [n, 2]; each item is parsed once.

    Raises:
      UserError: it is not JSON, has an item that is no object, or more than the array.
    """
    with open(path, "rb") as file:
        rows = iter(_ArrayReader(file, name))
        while some := [*itertools.islice(rows, BLOCK_ROWS)]:
            yield np.array(some, np.int64)


class _ArrayReader:
    """Iterates over the start, in bytes, and the line of each item of an array."""

    def __init__(self, file: BinaryIO, name: str):
        self._file, self._name = file, name
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        # What has been read and not been passed yet, and where it begins.
        self._text, self._at = "", 0
        self._byte, self._line, self._n_items = 0, 1, 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        self._pass_if(BOM)
        self._pass_if("[")
        if self._next() != "]":
            yield self._item()
            while self._pass_if(","):
                yield self._item()
        if not self._pass_if("]"):
            self._refuse("is not followed by a comma, or the array's end")
        if rest := self._next():
            self._refuse(f"is the array's last, and {rest!r} follows its end")

    def _item(self) -> tuple[int, int]:
        self._next()
        self._n_items += 1
        where = self._byte, self._line
        if self._next() != "{":
            self._refuse("is not an object")
        while True:
            try:
                _, stop = json.JSONDecoder().raw_decode(self._text, self._at)
                break
            except RecursionError as error:
                self._refuse(f"is not JSON ({error})")
            except json.JSONDecodeError as error:
                if len(self._text) - self._at > RECORD_BYTES:
                    self._refuse(
                        f"does not end within {RECORD_BYTES:,} bytes ({error.msg})"
                    )
                # Twice as much each time, so that a long item is not parsed often.
                if not self._read(len(self._text) - self._at):
                    self._refuse(f"is not JSON ({error.msg})")
        self._pass(stop)
        if self._byte - where[0] > RECORD_BYTES:
            self._refuse(f"has more than {RECORD_BYTES:,} bytes")
        return where

    def _next(self) -> str:
        """The character after any space; empty at the end of the file."""
        while True:
            at = self._at
            while at < len(self._text) and self._text[at] in SPACE:
                at += 1
            self._pass(at)
            if at < len(self._text) or not self._read(0):
                return self._text[at : at + 1]

    def _pass_if(self, character: str) -> bool:
        if found := self._next() == character:
            self._pass(self._at + 1)
        return found

    def _pass(self, stop: int) -> None:
        passed = self._text[self._at : stop]
        self._byte += len(passed.encode())
        self._line += passed.count("\n")
        self._at = stop

    def _read(self, n: int) -> bool:
        """Reads n more bytes or a block; False at the end of the file."""
        block = self._file.read(max(n, BLOCK_BYTES))
        self._text = self._text[self._at :] + self._decoder.decode(block)
        self._at = 0
        return bool(block)

    def _refuse(self, fault: str) -> NoReturn:
        record = Record(self._name, self._line, b"", max(self._n_items, 1))
        raise UserError(f"{record.where} {fault}; {ADVICE}.")
