"""The receipt of a run: for each session its code, versions, devices and data."""

import importlib.metadata
import json
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import jax

from jaxpar import atomic
from jaxpar.data.prepare import Prepared
from jaxpar.errors import UserError, one_line
from jaxpar.run.same_data import require_same_data

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Receipt:
    """A handle on receipt.json: a list of sessions, the newest last."""

    def __init__(self, path: Path):
        self.path = path

    def sessions(self) -> list[dict[str, Any]]:
        """What earlier sessions wrote; none where there is no receipt.

        Raises:
          UserError: the receipt is damaged, so what it says cannot be compared.
        """
        try:
            sessions = list(json.loads(self.path.read_text())["sessions"])
            if not all(isinstance(session, dict) for session in sessions):
                raise TypeError("a session is no JSON object")
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path} is damaged ({one_line(error)}); it says on which data "
                "the run was trained. Restore it, or start a new run with another "
                "--run-dir."
            ) from error
        return sessions

    def add(self, **facts: Any) -> None:
        """Adds a session: code, versions, devices, and the given facts."""
        device = jax.devices()[0]
        session = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "device_kind": device.device_kind,
            "n_devices": jax.device_count(),
            "n_processes": jax.process_count(),
            "code": _revision(),
            **facts,
        }
        write_json(self.path, {"sessions": [*self.sessions(), session]})

    def require_same(self, prepared: Prepared, start_from: str | None) -> None:
        """Refuses data, or a source run, other than those of the last session.

        start_from: the source's fingerprint and step, of a fine-tune.

        Raises:
          UserError: one of them has changed.
        """
        sessions = self.sessions()
        if not sessions or not isinstance(sessions[-1].get("data"), dict):
            return
        last, run = sessions[-1], self.path.parent
        if last.get("start_from") != start_from:
            raise UserError(
                f"{run} started from the run and step {last.get('start_from')}, "
                f"--start-from is now {start_from}; restore it, or start a new run "
                "with another --run-dir."
            )
        remedy = "restore it, or start a new run with another --run-dir."
        require_same_data(run, last, prepared, remedy=remedy)


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    atomic.write_bytes(path, f"{json.dumps(value, indent=2)}\n".encode())


def _revision() -> str | None:
    """The revision of the code, where it is a git checkout."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
