"""Atomic writing: a file is replaced whole, and on the disk, or not at all."""

import contextlib
import errno
import os
from pathlib import Path

NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)
"""What file systems answer that cannot wait for a directory to be on the disk."""


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file aside, waits until it is on the disk, and renames it.

    Raises:
      OSError: it cannot be written; what was there before is untouched.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Waits until the names in a directory are on the disk, where that is possible."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
    finally:
        os.close(folder)


def sync_tree(directory: Path) -> None:
    """Waits until every file and directory below a directory is on the disk.

    Raises:
      OSError: a file could not be written there.
    """
    for folder, _, names in os.walk(directory, topdown=False):
        for name in names:
            file = os.open(Path(folder) / name, os.O_RDONLY)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        sync_directory(Path(folder))
