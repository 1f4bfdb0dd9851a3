"""Local files: checked for UTF-8, hashed, and split into parts."""

import codecs
import dataclasses
import hashlib
import mmap
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

from jaxpar.errors import UserError
from jaxpar.sources import split

BLOCK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class File:
    """A file of UTF-8 that is not empty."""

    path: pathlib.Path
    name: str
    """The path from the glob's first wildcard on; decides whether it is held out."""
    digest: str
    """SHA-256 of the bytes, in hexadecimal."""
    size: int
    """In bytes."""


@dataclasses.dataclass(frozen=True)
class Piece:
    """Bytes `start:stop` of a file; its first line is number `line` of the file."""

    path: pathlib.Path
    name: str
    start: int
    stop: int
    line: int = 1

    def read(self) -> bytes:
        """The bytes, from the disk."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return file.read(self.stop - self.start)


def scan(paths: Mapping[str, pathlib.Path]) -> list[File]:
    """The files that are not empty, in the order of their names.

    Raises:
      UserError: a file is not UTF-8 or cannot be read, or all are empty.
    """
    files = []
    for name, path in sorted(paths.items()):
        digest, size = _digest_and_size(path)
        if size:
            files.append(File(path, name, digest, size))
    if not files:
        names = ", ".join(str(path) for path in list(paths.values())[:3])
        raise UserError(f"Nothing to read: {names} ({len(paths)} in all) is empty.")
    return files


def whole_files(files: Iterable[File]) -> list[Piece]:
    """Each file from its first byte to its last."""
    return [Piece(file.path, file.name, 0, file.size) for file in files]


def held_out_whole(files: Sequence[File]) -> list[File]:
    """The files that the hash of their name holds out; none of fewer than 20."""
    if len(files) < split.ONE_IN:
        return []
    return [file for file in files if split.held_out(file.name)]


def split_by_name(
    files: Sequence[File], tail: Callable[[File], tuple[int, int]]
) -> dict[str, list[Piece]]:
    """The parts `train` and `heldout` of some files.

    The hash of a file's name puts whole files into the held-out part; of fewer than
    20 files, or where it chooses none, the end of every file is held out.

    tail: where that end starts, in bytes, and the number of its line.
    """
    if held := held_out_whole(files):
        rest = [file for file in files if not split.held_out(file.name)]
        return {"train": whole_files(rest), "heldout": whole_files(held)}
    train, heldout = [], []
    for file in files:
        start, line = tail(file)
        train.append(Piece(file.path, file.name, 0, start))
        heldout.append(Piece(file.path, file.name, start, file.size, line))
    return {"train": _not_empty(train), "heldout": _not_empty(heldout)}


def fault_of_utf8(blocks: Iterable[bytes]) -> int | None:
    """Where the text in some blocks stops being UTF-8; None where all of it is."""
    decoder, size, checked = codecs.getincrementaldecoder("utf-8")(), 0, 0
    try:
        for block in blocks:
            size += len(block)
            decoder.decode(block)
            # The decoder keeps the bytes of a character that a block cuts.
            checked = size - len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return checked + error.start
    return None


def _digest_and_size(path: pathlib.Path) -> tuple[str, int]:
    """SHA-256 and bytes of a file of UTF-8, which need not fit into memory."""
    digest, size = hashlib.sha256(), 0

    def blocks(file: BinaryIO) -> Iterator[bytes]:
        nonlocal size
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            size += len(block)
            yield block

    try:
        with open(path, "rb") as file:
            fault = fault_of_utf8(blocks(file))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    if fault is not None:
        raise UserError(
            f"{path} is not UTF-8 at byte {fault}; convert it, "
            "for example with iconv -f LATIN1 -t UTF-8."
        )
    return digest.hexdigest(), size


def tail_of_file(path: pathlib.Path) -> tuple[int, int]:
    """Where the held-out end of a file starts, in bytes, and the number of its line."""
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        start = split.tail(text)
        blocks = range(0, start, BLOCK_BYTES)
        ends = (min(block + BLOCK_BYTES, start) for block in blocks)
        newlines = sum(
            text[b:e].count(b"\n") for b, e in zip(blocks, ends, strict=True)
        )
    return start, 1 + newlines


def _not_empty(pieces: Iterable[Piece]) -> list[Piece]:
    return [piece for piece in pieces if piece.stop > piece.start]
