"""Whether a run's directory can be written, asked before anything takes long."""

import os
import tempfile
from pathlib import Path

from jaxpar.errors import UserError
from jaxpar.partition import cluster
from jaxpar.run.directory import RunDir

BLOCK = 4096
"""Bytes that are written to see whether that is possible."""


def require_writable(run_dir: RunDir) -> None:
    """Refuses a run whose directory, or what it holds, cannot be written.

    Every process calls it; process 0, which writes, looks. It leaves nothing behind.

    Raises:
      UserError: names the path, and says what is wrong with it.
    """
    with cluster.synchronized():
        if not cluster.is_first():
            return
        for folder in (run_dir.path, run_dir.checkpoints_dir, run_dir.tensorboard_dir):
            _require_writable_folder(folder)
        _require_appendable(run_dir.metrics_path)


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
