"""The cache directory: prepared data that can be made again at any time."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any


def root() -> pathlib.Path:
    """`$JAXPAR_CACHE`, else the platform's directory for a user's caches."""
    if chosen := os.environ.get("JAXPAR_CACHE"):
        return pathlib.Path(chosen).expanduser()
    home = pathlib.Path.home()
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "jaxpar"
    if sys.platform == "win32":
        return pathlib.Path(os.environ.get("LOCALAPPDATA", home)) / "jaxpar"
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", home / ".cache")) / "jaxpar"


def key(**parts: Any) -> str:
    """A hash of the parts, which JSON must be able to write: 16 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions(
    *distributions: str, known: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The version of each distribution: as it is known, else the installed one.

    It is "absent" where there is none.
    """
    installed = {}
    for name in distributions:
        if known and name in known:
            installed[name] = known[name]
            continue
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = "absent"
    return installed


def build_once(
    path: pathlib.Path, build: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """The directory `path`; where it does not exist, `build` fills it.

    `build` writes into a temporary directory, which is renamed to `path` at the end.
    Two processes may build at once: the first rename wins, and both use its result.
    """
    if path.is_dir():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        build(pathlib.Path(temporary))
        os.replace(temporary, path)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def sha256(path: pathlib.Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
