"""The manifest of a directory: what its files hold, to notice accidental damage.

A manifest has the size of each file and a SHA-256 digest of each 64 MiB of it. It
detects accidents (a flipped bit, a short or missing file), not malice: whoever can
write a file can write a manifest that fits. Damage before it was written is not seen.

With several processes the blocks are dealt out, so each is read once, by one of them:
1 TB on 1,000 hosts is 1 GB for each, about a second, and one exchange of 1 MB.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from jaxpar import atomic
from jaxpar.errors import one_line
from jaxpar.partition import cluster

NAME = "jaxpar_manifest.json"
FORMAT = 1
BLOCK_BYTES = 64 * 2**20
ONCE_BYTES = 2**20
"""How much of a file is held in memory at a time."""


class Damage(NamedTuple):
    """A file, by its path below the directory, and what is wrong with it."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def exists(directory: Path) -> bool:
    """Whether the directory has a manifest, good or damaged."""
    return os.path.lexists(directory / NAME)


def write(directory: Path, *, block_bytes: int = BLOCK_BYTES) -> None:
    """Writes the manifest of what the directory holds now, whole or not at all.

    Every process calls it; each hashes its share, and process 0 writes.

    Raises:
      OSError: a file cannot be read, or the manifest not be written.
      OtherProcessFailed: another process cannot read its share.
    """
    with cluster.synchronized():
        sizes = {name: (directory / name).stat().st_size for name in _names(directory)}
        mine = {
            f"{name}@{block}": _digest(directory / name, block, block_bytes)
            for name, block in _share(sizes, block_bytes)
        }
    digests: dict[str, str] = {}
    for share in cluster.gather(mine):
        digests.update(share)
    table = {
        name: {
            "bytes": size,
            "sha256": [digests[f"{name}@{i}"] for i in _blocks(size, block_bytes)],
        }
        for name, size in sizes.items()
    }
    with cluster.synchronized():
        if cluster.is_first():
            text = _text({"block_bytes": block_bytes, "files": table, "format": FORMAT})
            atomic.write_bytes(directory / NAME, text.encode())


def verify(
    directory: Path, *, sizes_only: bool = False, below: str = ""
) -> list[Damage]:
    """What differs from the manifest; empty where nothing does.

    Every process calls it, and gets the same answer. sizes_only: hash nothing.
    below: look only at files whose path begins so.
    """
    try:
        mine = _differences(directory, sizes_only, below)
    except (OSError, LookupError, TypeError, ValueError) as error:
        # Not raised, since the other processes wait for an answer.
        mine = [Damage(below or ".", one_line(error))]
    return sorted({Damage(*pair) for sent in cluster.gather(mine) for pair in sent})


def links_out(directory: Path) -> list[Damage]:
    """The links below a directory that lead out of it, and links to directories."""
    root = directory.resolve()
    found = []
    for folder, folders, files in os.walk(directory):
        for name in folders + files:
            path = Path(folder) / name
            if not path.is_symlink():
                continue
            relative = path.relative_to(directory).as_posix()
            if not path.resolve().is_relative_to(root):
                found.append(Damage(relative, "a link that leaves the directory"))
            elif path.is_dir():
                found.append(Damage(relative, "a link to a directory"))
    return found


def _differences(directory: Path, sizes_only: bool, below: str) -> list[Damage]:
    """What differs, as far as this process looks: at all sizes, at its blocks."""
    try:
        manifest = _read(directory / NAME)
    except OSError as error:
        return [Damage(NAME, f"cannot be read ({error.strerror})")]
    except ValueError as error:
        return [Damage(NAME, str(error))]
    links = links_out(directory)
    linked = {link.file for link in links}
    files, block_bytes = manifest["files"], manifest["block_bytes"]
    found, whole = [link for link in links if link.file.startswith(below)], {}
    for name, expected in files.items():
        if name in linked or not name.startswith(below):
            continue
        if _leaves(name):
            found.append(Damage(name, "its name leaves the directory"))
        elif not (directory / name).is_file():
            found.append(Damage(name, "missing"))
        elif (size := (directory / name).stat().st_size) != expected["bytes"]:
            found.append(Damage(name, f"{size} bytes, not {expected['bytes']}"))
        else:
            whole[name] = size
    added = set(_names(directory)) - files.keys() - linked
    found += [
        Damage(name, "not in the manifest") for name in added if name.startswith(below)
    ]
    changed = set()
    for name, block in () if sizes_only else _share(whole, block_bytes):
        if name not in changed and not _matches(
            directory / name, block, block_bytes, files[name]["sha256"][block]
        ):
            changed.add(name)
    return found + [Damage(name, "content changed") for name in changed]


def _read(path: Path) -> dict[str, Any]:
    """The manifest of a file; ValueError says what is wrong with it."""
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
        number = manifest["format"]
        table = {key: manifest[key] for key in ("block_bytes", "files", "format")}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("content changed") from error
    if type(number) is int and number > FORMAT:
        raise ValueError(f"of format {number}; this jaxpar reads format {FORMAT}")
    if raw != _text(table).encode():
        raise ValueError("content changed")
    return table


def _text(table: dict[str, Any]) -> str:
    """The manifest's text, which ends with a digest of all that is before it."""
    body = json.dumps(table, sort_keys=True, indent=0)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**table, "table_sha256": digest}, sort_keys=True, indent=0)


def _names(directory: Path) -> list[str]:
    """The paths of the files below a directory, sorted, without the manifest's own."""
    return sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if (path.is_symlink() or not path.is_dir())
        and not (path.parent == directory and path.name.startswith(NAME))
    )


def _leaves(name: str) -> bool:
    """Whether a name of a manifest is no path below its directory."""
    return name.startswith("/") or "\0" in name or ".." in name.split("/")


def _blocks(size: int, block_bytes: int) -> range:
    return range(-(-size // block_bytes))


def _share(sizes: dict[str, int], block_bytes: int) -> list[tuple[str, int]]:
    """The files' blocks that this process hashes, as file and number of the block."""
    blocks = [
        (name, block)
        for name, size in sorted(sizes.items())
        for block in _blocks(size, block_bytes)
    ]
    # Where there is only one process, its index is 0 and their count may be 0 or 1.
    return blocks[cluster.index() :: max(cluster.count(), 1)]


def _digest(path: Path, block: int, block_bytes: int) -> str:
    """The SHA-256 of one block of a file."""
    digest = hashlib.sha256()
    left = block_bytes
    with open(path, "rb") as file:
        file.seek(block * block_bytes)
        while left > 0 and (piece := file.read(min(ONCE_BYTES, left))):
            digest.update(piece)
            left -= len(piece)
    return digest.hexdigest()


def _matches(path: Path, block: int, block_bytes: int, expected: str) -> bool:
    """Whether a block has this digest; one that cannot be read has not."""
    try:
        return _digest(path, block, block_bytes) == expected
    except OSError:
        return False
