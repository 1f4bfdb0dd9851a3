"""A run directory: configuration, receipts, metrics, tokenizer, checkpoints."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import jax

from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.config import UserError, differences, fingerprint, from_json, to_json
from jaxpar.experiment import CLASSES
from jaxpar.train.converge import Never

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunDir:
    """A handle on the directory of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def config_path(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard_dir(self) -> Path:
        return self.path / "tensorboard"

    @property
    def tokenizer_dir(self) -> Path:
        return self.path / "tokenizer"

    def exists(self) -> bool:
        return self.config_path.is_file()

    def checkpoints(self, *, keep: int = 2, read_only: bool = True) -> Checkpoints:
        return Checkpoints(self.path / "checkpoints", keep=keep, read_only=read_only)

    def open(self, *classes: type) -> Any:
        """The experiment that this run is of, as a value.

        classes: those that config.json names and jaxpar does not ship.
        """
        if not self.exists():
            raise UserError(f"{self.path} is no run: it has no config.json.")
        try:
            data = json.loads(self.config_path.read_text())
        except ValueError as error:
            raise UserError(f"{self.config_path} is no JSON: {error}") from error
        if not isinstance(data, dict):
            raise UserError(f"{self.config_path} holds no experiment but {data!r:.80}.")
        return from_json(data, {**CLASSES, **{c.__name__: c for c in classes}})

    def claim(self, experiment: Any, *, source: Path | None = None) -> bool:
        """Makes this the directory of an experiment; whether it already was.

        source: the experiment's file, kept as a receipt and never executed.

        Raises:
          UserError: it is the directory of another experiment; lists every field.
        """
        if self.exists():
            self._refuse_another(experiment)
            resumed = True
        else:
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"{self.path} is a file; a run needs a directory.")
            if (self.path / "checkpoints").exists():
                raise UserError(
                    f"{self.path} has checkpoints, but no config.json says of which "
                    "experiment; put it back, or choose another --run-dir."
                )
            resumed = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.config_path, to_json(experiment))
            if source is not None and not resumed:
                shutil.copyfile(source, self.path / "experiment.py")
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}; choose another "
                "--run-dir."
            ) from error
        return resumed

    def pick(self, step: int | str | None, *, rule: Any = None) -> int:
        """A step by number, "best" or "newest"; None: best where a rule stops the run.

        Raises:
          UserError: there is no such checkpoint.
        """
        if not self.exists():
            raise UserError(f"{self.path} is no run: it has no config.json.")
        if not (self.path / "checkpoints").is_dir():
            raise UserError(f"{self.path} has no checkpoint yet.")
        with contextlib.closing(self.checkpoints()) as checkpoints:
            steps, best = checkpoints.steps(), checkpoints.best()
        if not steps:
            raise UserError(f"{self.path} has no checkpoint yet.")
        if step is None:
            step = "newest" if rule is None or isinstance(rule, Never) else "best"
        if step == "newest":
            return steps[-1]
        if step == "best":
            return steps[-1] if best is None else best
        if str(step) not in map(str, steps):
            raise UserError(
                f'{self.path} has no step {step}; there are {steps}, "best" and '
                '"newest".'
            )
        return int(step)

    def write_receipt(self, **facts: Any) -> None:
        """Adds a session to receipt.json: code, versions, devices, given facts."""
        path = self.path / "receipt.json"
        try:
            sessions = json.loads(path.read_text())["sessions"]
        except (OSError, ValueError, KeyError):
            sessions = []
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
        write_json(path, {"sessions": [*sessions, session]})

    def _refuse_another(self, experiment: Any) -> None:
        try:
            theirs = self.open(*_classes_of(experiment))
        except UserError as error:
            raise UserError(
                f"{self.path} is the run of another experiment, or of another version "
                f"of its classes: {error} Choose another --run-dir, or leave it out."
            ) from error
        found = differences(experiment, theirs)
        wrong = [str(d) for d in found if not d.free]
        if not wrong:
            return
        allowed = [str(d) for d in found if d.free]
        rest = f" (These may differ: {'; '.join(allowed)}.)" if allowed else ""
        raise UserError(
            f"{self.path} is the run of another experiment: {'; '.join(wrong)}.{rest} "
            "Choose another --run-dir, or leave it out."
        )


def default_dir(stem: str, experiment: Any, **replaced: Any) -> Path:
    """runs/STEM-FINGERPRINT, where an experiment goes unless told otherwise."""
    return Path("runs") / f"{stem}-{fingerprint(experiment, **replaced)}"


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(aside, "w") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def read_metrics(path: Path) -> list[dict]:
    """The lines of metrics.jsonl; a later line of the same step and split counts.

    A last line that a crash cut short is passed over.
    """
    kept: dict[tuple, dict] = {}
    for line in Path(path).read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        key = (row.get("step"), row.get("split"))
        kept.pop(key, None)
        kept[key] = row
    return sorted(kept.values(), key=lambda row: row.get("step", 0))


def _classes_of(value: Any) -> tuple[type, ...]:
    """The classes that a configuration is made of, a user's own among them."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return ()
    inner = (getattr(value, f.name) for f in dataclasses.fields(value))
    return (type(value), *(c for item in inner for c in _classes_of(item)))


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
