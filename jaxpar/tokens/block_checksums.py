"""Files with a checksum for each block, which is checked when it is first read.

CRC-32 notices accidents (a flipped bit, a torn or short file), not malice. Files are
read, not mapped: one that is cut short while it is open is an error, not a signal.
"""

import hashlib
import os
import pathlib
import shlex
import zlib
from array import array
from typing import Any, Self

import numpy as np

from jaxpar.errors import DataWentBad, JaxparError, UserError

BLOCK_BYTES = 1 << 16
"""Bytes of one checksum: a small read checks a whole block, about as much as a disk
reads ahead; the checksums of 1 TB are 64 MB."""
SUFFIX = ".crc32"
READ_BYTES = 1 << 20


def damaged(path: pathlib.Path, what: str, *, preparation: pathlib.Path) -> DataWentBad:
    """The error that says what is wrong with a file, and how to make it again.

    preparation: the directory in the cache that is made again as a whole.
    """
    command = f"rm -r {shlex.quote(str(preparation))}"
    return DataWentBad(
        f"{path} {what}. Remove its preparation with `{command}` and run the same "
        "command again, which prepares the data anew."
    )


def unreadable(
    path: pathlib.Path, error: Exception, *, preparation: pathlib.Path
) -> JaxparError:
    """The error that says that a file cannot be read."""
    if isinstance(error, PermissionError):
        return UserError(
            f"{path} may not be read by this user; ask its owner for the right to read "
            f"{preparation}, or set JAXPAR_CACHE to a directory of your own."
        )
    reason = error.strerror if isinstance(error, OSError) else None
    what = f"cannot be read ({reason or error or type(error).__name__})"
    return damaged(path, what, preparation=preparation)


class ChecksumWriter:
    """A growing file with a checksum of each block, of the bytes that were given to it.

    Used as a context, at whose end the checksums are written beside the file.
    """

    def __init__(self, path: pathlib.Path, *, size: int = 0):
        """size: bytes that the file has, to which more are written; others are cut."""
        self.path = path
        self.sha256 = hashlib.sha256()
        """Of all bytes so far."""
        self.facts: dict[str, Any] = {}
        """What CheckedFile needs to know of the file; filled at the end."""
        self._file = open(path, "r+b" if size else "w+b")
        self._sums = array("I")
        self._sum, self._filled, self._size = 0, 0, 0
        while block := self._file.read(min(READ_BYTES, size - self._size)):
            self._count(block)
        self._file.truncate(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._file.close()
        if kind is not None:
            return
        if self._filled:
            self._end_block()
        sums = np.array(self._sums, "<u4").tobytes()
        _beside(self.path).write_bytes(sums)
        self.facts = {
            "bytes": self._size,
            "block_bytes": BLOCK_BYTES,
            "crc32_sha256": hashlib.sha256(sums).hexdigest(),
        }

    def write(self, content: bytes) -> None:
        """Appends some bytes."""
        self._file.write(content)
        self._count(content)

    def sync(self) -> int:
        """Bytes so far, all of which are on the disk now."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._size

    def _count(self, content: bytes) -> None:
        self.sha256.update(content)
        self._size += len(content)
        rest = memoryview(content)
        while rest:
            piece = rest[: BLOCK_BYTES - self._filled]
            self._sum = zlib.crc32(piece, self._sum)
            self._filled += len(piece)
            if self._filled == BLOCK_BYTES:
                self._end_block()
            rest = rest[len(piece) :]

    def _end_block(self) -> None:
        self._sums.append(self._sum)
        self._sum, self._filled = 0, 0


class CheckedFile:
    """An open file, of which a block is checked before anything of it is returned.

    It may be read by several threads: at worst, two of them check one block.
    """

    def __init__(
        self,
        path: pathlib.Path,
        facts: dict[str, Any] | None,
        *,
        preparation: pathlib.Path,
    ):
        """facts: as of ChecksumWriter; None if the file has no checksums.

        Raises:
          DataWentBad: the file or its checksums are absent, or of another size.
          UserError: they may not be read by this user.
        """
        self.path, self._preparation = path, preparation
        try:
            self._file = open(path, "rb", buffering=0)
            self.size = os.fstat(self._file.fileno()).st_size
        except OSError as error:
            raise unreadable(path, error, preparation=preparation) from error
        self._block_bytes = facts["block_bytes"] if facts else BLOCK_BYTES
        self._sums = None if facts is None else self._read_sums(facts)
        # A byte for each block, which is 0 until the block has been checked.
        self._checked = bytearray(-(-self.size // self._block_bytes))

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from start to before stop.

        Raises:
          DataWentBad: they are not what was written, or the file has become shorter.
        """
        if self._sums is not None and start < stop:
            first, last = start // self._block_bytes, (stop - 1) // self._block_bytes
            while (block := self._checked.find(0, first, last + 1)) >= 0:
                self._block(block)
        return self._read(start, stop)

    def read_all(self) -> np.ndarray:
        """All bytes (uint8), checked."""
        content = np.empty(self.size, np.uint8)
        for block in range(len(self._checked)):
            start = block * self._block_bytes
            raw = self._block(block)
            content[start : start + len(raw)] = np.frombuffer(raw, np.uint8)
        return content

    def check_all(self) -> None:
        """Checks every block that has not been read yet; raises as `read` does."""
        while (block := self._checked.find(0)) >= 0:
            self._block(block)

    def damaged(self, what: str) -> DataWentBad:
        """The error for this file; see the function of this name."""
        return damaged(self.path, what, preparation=self._preparation)

    def _block(self, block: int) -> bytes:
        """One block, checked."""
        start = block * self._block_bytes
        raw = self._read(start, min(start + self._block_bytes, self.size))
        if self._sums is not None and zlib.crc32(raw) != self._sums[block]:
            raise self.damaged(
                f"is damaged: bytes {start} to {start + len(raw)} are not what was "
                "written (their checksum differs)"
            )
        self._checked[block] = 1
        return raw

    def _read(self, start: int, stop: int) -> bytes:
        """Bytes as they are on the disk."""
        try:
            raw = os.pread(self._file.fileno(), stop - start, start)
            while len(raw) < stop - start:
                place = start + len(raw)
                more = os.pread(self._file.fileno(), stop - place, place)
                if not more:
                    raise self.damaged(
                        f"was cut short while it was open: it ends at byte {place} of "
                        f"{self.size}"
                    )
                raw += more
        except OSError as error:
            where = f"bytes {start} to {stop} ({error.strerror})"
            raise self.damaged(f"cannot be read at {where}") from error
        return raw

    def _read_sums(self, facts: dict[str, Any]) -> np.ndarray:
        """The checksums, which must be what the metadata says."""
        beside = _beside(self.path)
        if self.size != facts["bytes"]:
            raise self.damaged(f"has {self.size} bytes, not {facts['bytes']}")
        try:
            raw = beside.read_bytes()
        except OSError as error:
            raise unreadable(beside, error, preparation=self._preparation) from error
        if hashlib.sha256(raw).hexdigest() != facts["crc32_sha256"]:
            what = "is damaged: its hash differs"
            raise damaged(beside, what, preparation=self._preparation)
        return np.frombuffer(raw, "<u4")


def _beside(path: pathlib.Path) -> pathlib.Path:
    """The file with the checksums of a file."""
    return path.with_name(path.name + SUFFIX)
