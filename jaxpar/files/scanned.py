"""Local files: checked for UTF-8, hashed, and split into parts."""

import codecs
import concurrent.futures
import dataclasses
import hashlib
import pathlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import overload

from jaxpar.errors import UserError
from jaxpar.files import kept, split
from jaxpar.files.file_text import FileText
from jaxpar.files.lazy import Lazy

BLOCK_BYTES = 1 << 20
LONG_BYTES = 16 << 20
"""What is known of a file of so many bytes is kept, and its text stays in the file."""
N_THREADS = 8
"""Files are waited for together: a disk elsewhere takes its time for each."""
AT_ONCE = 1 << 10


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

    def read(self) -> bytes | FileText:
        """The bytes; they stay in the file where they are many."""
        text = FileText(self.path, self.start, self.stop)
        return text if len(text) >= LONG_BYTES else text[:]


class Files(Sequence[File]):
    """Files in the order of their names; some 300 bytes of memory for each."""

    def __init__(self):
        self._names: list[str] = []
        self._paths: list[str] = []
        self._digests, self._sizes = bytearray(), array("q")

    def add(self, name: str, path: pathlib.Path, digest: str, size: int) -> None:
        """Appends a file."""
        self._names.append(name)
        self._paths.append(str(path))
        self._digests += bytes.fromhex(digest)
        self._sizes.append(size)

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, i: int) -> File: ...
    @overload
    def __getitem__(self, i: slice) -> list[File]: ...
    def __getitem__(self, i: int | slice) -> File | list[File]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        i = range(len(self))[i]
        digest = self._digests[32 * i : 32 * i + 32].hex()
        path = pathlib.Path(self._paths[i])
        return File(path, self._names[i], digest, self._sizes[i])


def scan(paths: Mapping[str, pathlib.Path]) -> Files:
    """The files that are not empty, in the order of their names.

    Raises:
      UserError: a file is not UTF-8 or cannot be read, or all are empty.
    """
    files, names = Files(), sorted(paths)
    with concurrent.futures.ThreadPoolExecutor(N_THREADS) as threads:
        for first in range(0, len(names), AT_ONCE):
            some = names[first : first + AT_ONCE]
            found = threads.map(_digest_and_size, (paths[name] for name in some))
            for name, (digest, size) in zip(some, found, strict=True):
                if size:
                    files.add(name, paths[name], digest, size)
    if not files:
        first = ", ".join(str(path) for path in list(paths.values())[:3])
        raise UserError(f"Nothing to read: {first} ({len(paths)} in all) is empty.")
    return files


def whole_files(files: Sequence[File]) -> Sequence[Piece]:
    """Each file from its first byte to its last."""
    return _whole(files, range(len(files)))


def held_out_whole(files: Sequence[File]) -> Sequence[int]:
    """The numbers of the files that the hash of their name holds out.

    None of fewer than 20.
    """
    if len(files) < split.ONE_IN:
        return ()
    held = (i for i, file in enumerate(files) if split.held_out(file.name))
    return array("q", held)


def split_by_name(
    files: Sequence[File], tail: Callable[[File], tuple[int, int]]
) -> dict[str, Sequence[Piece]]:
    """The parts `train` and `heldout` of some files.

    The hash of a file's name puts whole files into the held-out part; of fewer than
    20 files, or where it chooses none, the end of every file is held out.

    tail: where that end starts, in bytes, and the number of its line.
    """
    if held := held_out_whole(files):
        of_these = set(held)
        rest = array("q", (i for i in range(len(files)) if i not in of_these))
        return {"train": _whole(files, rest), "heldout": _whole(files, held)}
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


def tail_of_file(path: pathlib.Path) -> tuple[int, int]:
    """Where the held-out end of a file starts, in bytes, and the number of its line."""
    size = path.stat().st_size

    def find() -> list[int]:
        text = FileText(path, 0, size)
        start = split.tail(text)
        blocks = range(0, start, BLOCK_BYTES)
        parts = (text[b : min(b + BLOCK_BYTES, start)] for b in blocks)
        return [start, 1 + sum(part.count(b"\n") for part in parts)]

    start, line = _kept("tail", path, size, find)
    return start, line


def _digest_and_size(path: pathlib.Path) -> list:
    """SHA-256 and bytes of a file of UTF-8, which need not fit into memory."""
    try:
        size = path.stat().st_size
        return _kept("digest", path, size, lambda: _digested(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error


def _digested(path: pathlib.Path) -> list:
    digest, size = hashlib.sha256(), 0

    def blocks() -> Iterator[bytes]:
        nonlocal size
        with open(path, "rb", buffering=0) as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                size += len(block)
                yield block

    if (fault := fault_of_utf8(blocks())) is not None:
        raise UserError(
            f"{path} is not UTF-8 at byte {fault}; convert it, "
            "for example with iconv -f LATIN1 -t UTF-8."
        )
    return [digest.hexdigest(), size]


def _kept(what: str, path: pathlib.Path, size: int, find: Callable[[], list]) -> list:
    """What is found of a file; of a long one it is kept, and asked for only once."""
    return find() if size < LONG_BYTES else kept.answer({"what": what}, path, find)


def _whole(files: Sequence[File], numbers: Sequence[int]) -> Lazy[Piece]:
    def piece(i: int) -> Piece:
        file = files[i]
        return Piece(file.path, file.name, 0, file.size)

    return Lazy(numbers, piece)


def _not_empty(pieces: Iterable[Piece]) -> list[Piece]:
    return [piece for piece in pieces if piece.stop > piece.start]
