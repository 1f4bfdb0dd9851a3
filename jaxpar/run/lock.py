"""One writer at a time in a run directory."""

import contextlib
import fcntl
import os
import socket
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from jaxpar.errors import UserError


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
                file=sys.stderr,
            )
        self._file.truncate(0)
        self._file.write(
            f"pid {os.getpid()} on {socket.gethostname()} since {time.ctime()}"
        )
        self._file.flush()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            # A process that was forked off may keep the file open.
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()
