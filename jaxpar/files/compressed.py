"""Compressed files, which are unpacked once into the cache."""

import bz2
import functools
import lzma
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from jaxpar import cache
from jaxpar.errors import UserError
from jaxpar.files import kept
from jaxpar.files.lazy import Paths

BLOCK_BYTES = 1 << 16


def _zstd() -> Any:
    try:
        from compression import zstd  # pyright: ignore[reportMissingImports]  # 3.14

        return zstd.ZstdDecompressor()
    except ModuleNotFoundError:
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj()


DECOMPRESSORS: dict[str, tuple[bytes, Callable[[], Any]]] = {
    ".gz": (b"\x1f\x8b\x08", lambda: zlib.decompressobj(31)),
    ".zst": (b"\x28\xb5\x2f\xfd", _zstd),
    ".xz": (b"\xfd7zXZ\x00", lzma.LZMADecompressor),
    ".bz2": (b"BZh91AY&SY", bz2.BZ2Decompressor),
}
"""By suffix, the first bytes of such a file, and what makes a reader of one frame."""
_PLAIN: set[int] = set()
"""Hashes of the states of files that are not compressed: each is opened once."""


def unpacked(found: Mapping[str, str]) -> Paths:
    """The files by their names, with what compressed ones hold in their place.

    Its name has no suffix of compression, so that it is the same data as before.

    Raises:
      UserError: one is damaged, its library is missing, or its content has a name that
        another file has, too.
    """
    suffixes = ((name, _compressed_as(path)) for name, path in found.items())
    packed = {name: suffix for name, suffix in suffixes if suffix}
    by_name: dict[str, str] = {}
    for name, text in found.items() if packed else ():
        if suffix := packed.get(name):
            path = pathlib.Path(text)
            stat, name = path.stat(), _content_name(name)
            text = _unpacked(path.absolute(), suffix, stat.st_size, stat.st_mtime_ns)
        if name in by_name:
            raise UserError(
                f"{name} is found twice, at least once of them compressed; name one."
            )
        by_name[name] = str(text)
    return Paths(by_name or found)


@functools.lru_cache(maxsize=1 << 16)
def _unpacked(path: pathlib.Path, suffix: str, *changes: int) -> pathlib.Path:
    """What a file unpacks to; `changes` are numbers that another content changes."""
    name = _content_name(path.name)
    key = cache.key(
        unpacked=1,
        name=name,
        content=kept.answer({"what": "sha256"}, path, lambda: cache.sha256(path)),
    )

    def build(directory: pathlib.Path) -> None:
        try:
            with open(path, "rb") as source, open(directory / name, "wb") as target:
                target.writelines(_blocks(source, DECOMPRESSORS[suffix][1]))
        except ModuleNotFoundError as error:
            raise UserError(
                f"{path} is compressed by zstd, which this Python cannot read: "
                'pip install -e ".[zstd]" (or: pip install zstandard).'
            ) from error
        except Exception as error:  # Each library has errors of its own.
            raise UserError(_reason(path, suffix, error)) from error

    return cache.build_once(cache.root() / "unpacked" / key, build) / name


def _reason(path: pathlib.Path, suffix: str, error: Exception) -> str:
    """Why a file is not unpacked: the disk, another content, or damage."""
    if isinstance(error, OSError) and error.errno:  # An error of bz2 has no number.
        return (
            f"{path} cannot be unpacked into the cache {cache.root()} "
            f"({error.strerror}); set JAXPAR_CACHE to a directory with more room."
        )
    with open(path, "rb") as file:  # After three bytes, bzip2 has a level.
        is_compressed = DECOMPRESSORS[suffix][0].startswith(file.read(3))
    if not is_compressed:
        return (
            f"{path} is not compressed, although its name ends in {suffix}; rename it, "
            "or copy it again if its beginning is damaged."
        )
    return f"{path} cannot be unpacked as {suffix} ({error}); copy it again."


def _blocks(file: BinaryIO, new: Callable[[], Any]) -> Iterator[bytes]:
    """The content of all frames of a file, one after another."""
    frame, is_open = new(), True
    while block := file.read(BLOCK_BYTES):
        while block:
            frame, is_open = (frame if is_open else new()), True
            yield frame.decompress(block)
            block = b""
            if frame.eof:
                block, is_open = frame.unused_data, False
    if is_open:
        raise EOFError("it ends too early")


def _content_name(name: str) -> str:
    """A compressed file's name without a suffix that says so, if it has one."""
    suffix = pathlib.PurePath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in DECOMPRESSORS else name


def _compressed_as(path: str) -> str | None:
    """A suffix of DECOMPRESSORS, by a file's first bytes, else by its own."""
    try:
        stat = os.stat(path)
        state = hash((path, stat.st_size, stat.st_mtime_ns, stat.st_ino))
        if state in _PLAIN:
            return None
        with open(path, "rb", buffering=0) as file:
            head = file.read(16)
    except OSError:  # Whoever reads the file says what is wrong.
        return None
    for suffix, (first, _) in DECOMPRESSORS.items():
        if head.startswith(first):
            return suffix
    suffix = pathlib.PurePath(path).suffix.lower() if head else ""
    if suffix in DECOMPRESSORS:
        return suffix
    _PLAIN.add(state)
    return None
