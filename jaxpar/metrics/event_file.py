"""A file of TensorBoard's events, written at once, so that errors are noticed."""

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import Any

MOST_FILES = 1_000
"""Of one second and host, in one directory."""


class EventFile:
    """Scalars and texts in TensorBoard's format.

    It writes in the thread that calls it: tensorboardX's own writer loses errors in a
    thread of its own, whose full queue then blocks the caller.
    """

    def __init__(self, directory: Path, *, first_step: int):
        """Begins a new file; hides what earlier files have at first_step or later.

        Raises:
          OSError: it cannot be written.
        """
        from tensorboardX.proto import event_pb2

        # Made when the module is imported, of which a type checker knows nothing.
        self._event, log = event_pb2.Event, event_pb2.SessionLog  # pyright: ignore
        self._file = _new_file(directory)
        version = self._record(file_version="brain.Event:2")
        hide = self._record(step=first_step, session_log=log(status=log.START))
        append(self._file, version + hide)

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Writes scalars and texts by name.

        Raises:
          OSError: they could not be written; the file has no part of them.
        """
        from tensorboardX.summary import scalar, text

        records = (
            self._record(
                step=step,
                summary=(text if isinstance(value, str) else scalar)(name, value),
            )
            for name, value in values.items()
        )
        append(self._file, b"".join(records))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _record(self, **fields: Any) -> bytes:
        """An event between its length and the checksums of both."""
        from tensorboardX.record_writer import masked_crc32c

        event = self._event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(event))
        checksums = [struct.pack("<I", masked_crc32c(part)) for part in (length, event)]
        return length + checksums[0] + event + checksums[1]


def append(file: FileIO, content: bytes) -> None:
    """Writes all of it at the end of an unbuffered file, or none.

    Raises:
      OSError: it could not be written, as on a full disk.
    """
    start, written = os.fstat(file.fileno()).st_size, 0
    try:
        # Where little space is left, the system writes a part and says how much.
        while written < len(content):
            written += file.write(content[written:])
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(start)
        raise


def _new_file(directory: Path) -> FileIO:
    """A file with a name that TensorBoard reads, which no earlier one has."""
    directory.mkdir(parents=True, exist_ok=True)
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
    for suffix in ("", *(f".{n}" for n in range(1, MOST_FILES))):
        with contextlib.suppress(FileExistsError):
            return (directory / f"{name}{suffix}").open("xb", buffering=0)
    raise FileExistsError(errno.EEXIST, "too many files of events", str(directory))
