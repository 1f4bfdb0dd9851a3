"""Directories of the cache that are made in several goes, where one is not enough."""

import contextlib
import os
import pathlib
import shutil
import socket
import time
from collections.abc import Callable

from jaxpar import atomic, cache
from jaxpar.errors import JaxparError, UserError

SUFFIX, USER = "-unfinished", ".user"
ELSEWHERE_SECONDS = 600
"""A directory of another machine that has not changed for so long is taken over."""
ABANDONED_SECONDS = 14 * 24 * 3600
"""What nobody has gone on with for so long is removed."""


def build(path: pathlib.Path, fill: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The directory `path`; where it does not exist, `fill` fills it.

    `fill` writes into a directory beside `path`, which may hold what a process that was
    killed has written, and goes on. After an error of ours, nothing is left.

    Raises:
      UserError: nothing can be made beside `path`, or a process of `fill` has ended.
    """
    if path.is_dir():
        return path
    folder = path.with_name(f".{path.name}{SUFFIX}")
    if _is_in_use_elsewhere(folder):
        return cache.build_once(path, fill)
    with contextlib.ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(cache.exclusive(path))
            if path.is_dir():
                return path
            _remove_abandoned(path.parent)
            folder.mkdir(exist_ok=True)
            (folder / USER).write_text(f"{os.getpid()} {socket.gethostname()}")
        except OSError as error:
            raise UserError(
                f"{path.parent} cannot be written ({error.strerror}); set JAXPAR_CACHE "
                "to a directory that can."
            ) from error
        try:
            fill(folder)
        except ChildProcessError as error:
            raise UserError(
                f"{error} Run the same command again: it goes on with what is written."
            ) from error
        except JaxparError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        (folder / USER).unlink()
        atomic.sync_tree(folder)
        try:
            os.replace(folder, path)
        except OSError:  # Another machine may have been faster.
            if not path.is_dir():
                raise
            shutil.rmtree(folder, ignore_errors=True)
        atomic.sync_directory(path.parent)
    return path


def _is_in_use_elsewhere(folder: pathlib.Path) -> bool:
    """Whether another process fills it whose lock may be unseen here."""
    try:
        number, _, machine = (folder / USER).read_text().partition(" ")
        if machine == socket.gethostname():
            os.kill(int(number), 0)  # Raises OSError if there is no such process.
            return int(number) != os.getpid()
        return time.time() - _changed(folder) < ELSEWHERE_SECONDS
    except (OSError, ValueError):
        return False


def _changed(folder: pathlib.Path) -> float:
    return max(found.stat().st_mtime for found in [folder, *folder.rglob("*")])


def _remove_abandoned(parent: pathlib.Path) -> None:
    for folder in parent.glob(f".*{SUFFIX}"):
        with contextlib.suppress(OSError):
            if time.time() - _changed(folder) > ABANDONED_SECONDS:
                shutil.rmtree(folder)
