"""The cache directory: prepared data that can be made again at any time."""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import itertools
import json
import os
import pathlib
import re
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

from jaxpar import atomic
from jaxpar.errors import UserError
from jaxpar.tables import for_messages

IN_USE = ".in_use"
"""The file that is locked in a temporary directory."""
LEFTOVER = re.compile(r"\..+-[0-9a-z_]{8}")
"""Names of temporary directories, those of older versions of jaxpar among them."""
ABANDONED_SECONDS = 24 * 3600
POLL_SECONDS, LOOKS_BEFORE_A_LINE = 0.2, 10
"""Between two looks at a lock, and how many until a line says who is waited for."""


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


def keep_programs() -> None:
    """Keeps the programs that JAX compiles, here, unless they are kept elsewhere."""
    import jax

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(root() / "compiled"))


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

    `build` writes into a temporary directory, which is on the disk before it is renamed
    to `path`. One process of a host builds, and others that want it wait; of several
    hosts the first rename wins, and all use its result. What processes that were killed
    left beside `path` is removed first.

    Raises:
      UserError: nothing can be made beside `path`.
    """
    if path.is_dir():
        return path
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(path))
            if path.is_dir():
                return path
            _remove_leftovers(path.parent)
            # Not of `tempfile`, whose directories are closed to all other users.
            temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
            temporary.mkdir()
        except OSError as error:
            raise UserError(
                f"{path.parent} cannot be written ({error.strerror}); set JAXPAR_CACHE "
                "to a directory that can."
            ) from error
        try:
            with _marked_as_used(temporary):
                build(temporary)
                (temporary / IN_USE).unlink()
                atomic.sync_tree(temporary)
                os.replace(temporary, path)
            atomic.sync_directory(path.parent)
        except OSError:
            if not path.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return path


@contextlib.contextmanager
def exclusive(path: pathlib.Path) -> Iterator[None]:
    """A block that makes `path`, in which only one process of a host is at a time.

    A process that has to wait says so, and for which one. The lock is a file in the
    cache and ends with its process, even by kill -9; where a file system has no locks,
    nothing is exclusive.

    Raises:
      OSError: nothing can be written into the cache.
    """
    place = root() / "locks" / key(path=os.path.abspath(path))
    place.parent.mkdir(parents=True, exist_ok=True)
    for looks in itertools.count():
        with open(place, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if looks == LOOKS_BEFORE_A_LINE:
                    file.seek(0)
                    whose = file.read() or "another process"
                    line = f"{path} is being made by {whose}; this one waits for it."
                    print(line, file=for_messages(), flush=True)
                time.sleep(POLL_SECONDS)
                continue
            except OSError:  # This file system has no locks.
                pass
            # The one before may have removed the file between its opening and its lock.
            if not _is_at(file, place):
                continue
            try:
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                yield
            finally:
                place.unlink(missing_ok=True)
            return


def _is_at(file: TextIO, place: pathlib.Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), place.stat())
    return False


def sha256(path: pathlib.Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _marked_as_used(directory: pathlib.Path) -> Iterator[None]:
    """Locks a file in a directory, which names this machine, while in use.

    The lock ends with its process, even by kill -9.
    """
    with open(directory / IN_USE, "w", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # Some file systems have no locks.
            fcntl.flock(file, fcntl.LOCK_EX)
        file.write(_machine())
        file.flush()
        yield


def _remove_leftovers(folder: pathlib.Path) -> None:
    """Removes the temporary directories of builds that have ended without a rename."""
    for found in folder.iterdir():
        if LEFTOVER.fullmatch(found.name) and _is_abandoned(found):
            shutil.rmtree(found, ignore_errors=True)


def _is_abandoned(directory: pathlib.Path) -> bool:
    """Whether the process that fills a temporary directory has ended.

    Of a process of this machine, its lock says so. Locks of other machines may be
    unseen here: there, and where there is no lock, it has ended if nothing has changed
    for ABANDONED_SECONDS.
    """
    machine = ""
    try:
        with open(directory / IN_USE, "r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            machine = file.read()
    except BlockingIOError:
        return False
    except (OSError, ValueError):
        pass
    if machine == _machine():
        return True
    try:
        below = [path.lstat().st_mtime for path in directory.rglob("*")]
        changed = max([directory.lstat().st_mtime, *below])
    except OSError:  # Its files are renamed or removed at this moment.
        return False
    return time.time() - changed > ABANDONED_SECONDS


def _machine() -> str:
    """This machine since its last start, as far as it can be named."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        name += " " + pathlib.Path("/proc/sys/kernel/random/boot_id").read_text()
    return name
