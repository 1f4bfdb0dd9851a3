"""The right to write to a run directory: looked for, and held by one at a time."""

import contextlib
import fcntl
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Self

from jaxpar.errors import UserError
from jaxpar.partition import cluster
from jaxpar.tables import for_messages

BLOCK = 4096
"""Bytes that are written to see whether that is possible."""


class RunLock:
    """Holds run.lock while entered; the lock ends with its process, even by kill -9."""

    def __init__(self, directory: Path):
        self.path = Path(directory) / "run.lock"

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+")
        except OSError as error:
            raise UserError(
                f"{self.path.parent} cannot be written: {error.strerror}; choose "
                "another --run-dir."
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip()
            self._file.close()
            raise UserError(
                f"{self.path.parent} is in use by {holder}; wait for it to end, or "
                "choose another --run-dir."
            ) from None
        except OSError as error:  # As on Lustre without -o flock.
            print(
                f"{self.path.parent}: its file system has no locks ({error.strerror}), "
                "so nothing keeps a second run away from it.",
                file=for_messages(),
            )
        self._file.truncate(0)
        self._file.write(
            f"pid {os.getpid()} on {socket.gethostname()} since {time.ctime()}"
        )
        self._file.flush()
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            # A process that was forked off may keep the file open.
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()


def require_writable(*folders: Path, appended: Path) -> None:
    """Refuses a run of which one of these folders, or a file, cannot be written.

    Every process calls it; process 0, which writes, looks. It leaves nothing behind.
    appended: a file that is written at its end.

    Raises:
      UserError: names the path, and says what is wrong with it.
    """
    with cluster.synchronized():
        if not cluster.is_first():
            return
        for folder in folders:
            _require_writable_folder(folder)
        _require_appendable(appended)


def _require_writable_folder(path: Path) -> None:
    """Refuses a folder in which no file can be made; or, if it is missing, above it."""
    existing = path.absolute()
    while not os.path.exists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(
            f"{existing} is a file, and a run needs a directory at {path}; move it, or "
            "choose another --run-dir."
        )
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(BLOCK))  # Fails on a full disk.
            file.flush()
    except OSError as error:
        raise UserError(
            f"{existing} cannot be written ({error.strerror}), and a run needs {path}; "
            "make it writable, or choose another --run-dir."
        ) from error


def _require_appendable(path: Path) -> None:
    if not path.exists():
        return
    try:
        with path.open("ab"):
            pass
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}); make it a writable file, or "
            "choose another --run-dir."
        ) from error
