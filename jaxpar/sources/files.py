"""Local files that a glob finds: checked for UTF-8, hashed, and split into parts."""

import codecs
import dataclasses
import functools
import glob
import hashlib
import mmap
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

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


def matching(pattern: str) -> dict[str, pathlib.Path]:
    """The files that a glob finds, by their paths from its first wildcard on.

    A folder means all files below it. A file that links lead to under several names
    has one: that without a link, else the first in order.

    Raises:
      UserError: there are none, the pattern is a URL, or a path is not UTF-8.
    """
    if "://" in pattern:
        raise UserError(
            f"files:{pattern} is not a local path; copy the files here, "
            "or mount them, and name them by a path."
        )
    pattern = os.path.expanduser(pattern)
    if os.path.isdir(pattern) and not glob.has_magic(pattern):
        pattern = os.path.join(pattern, "**", "*")
    paths = [pathlib.Path(p) for p in glob.glob(pattern, recursive=True)]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise UserError(
            f"files:{pattern} matches no file (from {pathlib.Path.cwd()}); "
            "quote the pattern, and use ** to look into folders."
        )
    for path in paths:
        _refuse_odd_name(path)
    top = _before_wildcards(pattern)
    by_name = {path.relative_to(top).as_posix(): path for path in paths}
    return _each_once(by_name, os.path.realpath(top))


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


def _digest_and_size(path: pathlib.Path) -> tuple[str, int]:
    """SHA-256 and bytes of a file of UTF-8, which need not fit into memory."""
    digest, size, checked = hashlib.sha256(), 0, 0
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                size += len(block)
                decoder.decode(block)
                # The decoder keeps the bytes of a character that a block cuts.
                checked = size - len(decoder.getstate()[0])
            decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 at byte {checked + error.start}; convert it, "
            "for example with iconv -f LATIN1 -t UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    return digest.hexdigest(), size


def tail_of_file(path: pathlib.Path) -> tuple[int, int]:
    """Where the held-out end of a file starts, in bytes, and the number of its line."""
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text,
    ):
        start = split.tail(text)
        blocks = range(0, start, BLOCK_BYTES)
        newlines = sum(
            text[block : min(block + BLOCK_BYTES, start)].count(b"\n")
            for block in blocks
        )
    return start, 1 + newlines


def _each_once(
    paths: dict[str, pathlib.Path], real_top: str
) -> dict[str, pathlib.Path]:
    """The paths without those that lead to a file that is there already."""
    names: dict[str, str] = {}
    for name, path in sorted(paths.items()):
        real = os.path.realpath(path)
        if real not in names or os.path.join(real_top, name) == real:
            names[real] = name
    if len(names) == len(paths):
        return paths
    kept = set(names.values())
    example = next(path for name, path in paths.items() if name not in kept)
    say_once(
        f"{len(paths) - len(names)} of {len(paths)} paths are links to files that are "
        f"found under another name, too, such as {example}; each file is read once."
    )
    return {name: path for name, path in paths.items() if name in kept}


@functools.cache
def say_once(text: str) -> None:
    """A line on stderr, unless this process has printed it before."""
    print(text, file=sys.stderr)


def _refuse_odd_name(path: pathlib.Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"The file name {os.fsencode(path)!r} is not UTF-8, in which names are "
            "hashed and shown; rename the file, for example with "
            "convmv -f LATIN1 -t UTF-8."
        ) from error


def _not_empty(pieces: Iterable[Piece]) -> list[Piece]:
    return [piece for piece in pieces if piece.stop > piece.start]


def _before_wildcards(pattern: str) -> pathlib.Path:
    """The folders of a glob up to its first part with a wildcard."""
    fixed = []
    for part in pathlib.Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return pathlib.Path(*fixed)
