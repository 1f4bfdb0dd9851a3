"""The receipt of a run: for each session its code, versions, devices and data."""

import contextlib
import importlib.metadata
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxpar.data.prepare import Prepared
from jaxpar.data.same_data import require_same_data
from jaxpar.errors import UserError
from jaxpar.guard import time_account
from jaxpar.guard.sealed_json import read_json, write_json
from jaxpar.guard.time_account import SessionTime

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
        remedy = (
            "It says on which data the run was trained: restore it, or start a new run "
            "with another --run-dir."
        )
        try:
            sessions = read_json(self.path, remedy=remedy).get("sessions")
        except FileNotFoundError:
            return []
        if not isinstance(sessions, list) or not all(
            isinstance(session, dict) for session in sessions
        ):
            raise UserError(f"{self.path} is damaged: it has no sessions. {remedy}")
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

    def update_newest(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Writes the newest session as `change` returns it."""
        *earlier, newest = self.sessions()
        write_json(self.path, {"sessions": [*earlier, change(newest)]})

    def keep_time(self, number: int, seconds: dict[str, Any]) -> None:
        """Says of the session of this number, from 0, where its time went.

        Raises:
          UserError: the receipt is damaged, or has no such session.
        """
        sessions = self.sessions()
        if not 0 <= number < len(sessions):
            raise UserError(f"{self.path} has no session {number}.")
        sessions[number]["time"] = seconds
        write_json(self.path, {"sessions": sessions})

    def times(self) -> dict[int, SessionTime]:
        """Number of a session, from 0, to where its time went, of those that say so."""
        times = {}
        for number, session in enumerate(self.sessions()):
            if "time" in session:
                with contextlib.suppress(*time_account.MALFORMED):
                    times[number] = time_account.session_from_json(session["time"])
        return times

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
