"""The directory of what was prepared once and may be made again."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Callable


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


def key(**parts) -> str:
    """Sixteen hex digits that change with any of the JSON-able parts."""
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def versions(*distributions: str) -> dict[str, str]:
    """The installed version of each distribution; "absent" where there is none."""
    found = {}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def build_once(
    path: pathlib.Path, build: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """`path`, made by `build(aside)` and one rename if it is not there yet.

    Two processes may build at once: the first rename stands, and both read it.
    """
    if path.is_dir():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        build(aside)
        os.replace(aside, path)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return path


def sha256(path: pathlib.Path) -> str:
    """The hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
