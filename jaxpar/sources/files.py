"""Local files by a glob: found, checked, and cut into a part held out."""

import dataclasses
import glob
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from jaxpar.errors import UserError
from jaxpar.sources import split


@dataclasses.dataclass(frozen=True)
class File:
    """One file that was read once: it is not empty, and it is UTF-8."""

    path: pathlib.Path
    name: str
    digest: str
    size: int


@dataclasses.dataclass(frozen=True)
class Piece:
    """Bytes `start:stop` of a file; its first line is number `line`."""

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
    """The files that a glob finds, named from its first folder with a wildcard on."""
    if "://" in pattern:
        raise UserError(
            f"files:{pattern} is no local path; copy the files here, "
            "or mount them, and name them by a path."
        )
    pattern = os.path.expanduser(pattern)
    paths = [pathlib.Path(p) for p in glob.glob(pattern, recursive=True)]
    paths = [path for path in paths if path.is_file()]
    if not paths:
        raise UserError(
            f"files:{pattern} matches no file (from {pathlib.Path.cwd()}); "
            "quote the pattern, and use ** to look into folders."
        )
    top = _fixed_part(pattern)
    return {path.relative_to(top).as_posix(): path for path in paths}


def scan(found: Mapping[str, pathlib.Path]) -> list[File]:
    """Every file that is not empty, in the order of the names.

    Raises:
      UserError: a file is not UTF-8 or cannot be read, or all are empty.
    """
    files = []
    for name, path in sorted(found.items()):
        try:
            text = path.read_bytes()
            text.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path} is not UTF-8 at byte {error.start}; convert it, "
                "for example with iconv -f LATIN1 -t UTF-8."
            ) from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error
        if text:
            digest = hashlib.sha256(text).hexdigest()
            files.append(File(path, name, digest, len(text)))
    if not files:
        names = ", ".join(str(path) for path in list(found.values())[:3])
        raise UserError(f"Nothing to read: {names} ({len(found)} in all) is empty.")
    return files


def whole_files(files: Iterable[File]) -> list[Piece]:
    """Each file from its first byte to its last."""
    return [Piece(file.path, file.name, 0, file.size) for file in files]


def divide(files: Sequence[File]) -> dict[str, list[Piece]]:
    """The part to train on and the part held out: by hash, or the end of every file."""
    held = [file for file in files if split.held_out(file.name)]
    if len(files) >= split.ONE_IN and held:
        rest = [file for file in files if not split.held_out(file.name)]
        return {"train": whole_files(rest), "heldout": whole_files(held)}
    train, heldout = [], []
    for file in files:
        text = file.path.read_bytes()
        at = split.tail(text)
        line = 1 + text.count(b"\n", 0, at)
        train.append(Piece(file.path, file.name, 0, at))
        heldout.append(Piece(file.path, file.name, at, file.size, line))
    return {"train": _not_empty(train), "heldout": _not_empty(heldout)}


def _not_empty(pieces: Iterable[Piece]) -> list[Piece]:
    return [piece for piece in pieces if piece.stop > piece.start]


def _fixed_part(pattern: str) -> pathlib.Path:
    fixed = []
    for part in pathlib.Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return pathlib.Path(*fixed)
