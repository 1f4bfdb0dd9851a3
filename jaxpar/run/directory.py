"""A run directory: configuration, receipt, metrics, tokenizer, checkpoints."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.config import differences, fingerprint, from_json, to_json
from jaxpar.errors import UserError
from jaxpar.experiment import CLASSES, Experiment
from jaxpar.run import formats
from jaxpar.run.formats import E
from jaxpar.run.receipt import Receipt, write_json
from jaxpar.train.converge import Never, StopRule

Step = int | str | None
"""A checkpoint: its number, "best" or "newest"; None: best where a rule stops a run."""


class RunDir:
    """A handle on the directory of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @property
    def config_path(self) -> Path:
        """The experiment, as JSON."""
        return self.path / "config.json"

    @property
    def receipt(self) -> Receipt:
        """What each session was made with."""
        return Receipt(self.path / "receipt.json")

    @property
    def metrics_path(self) -> Path:
        """A line for each step and each evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard_dir(self) -> Path:
        """The same as TensorBoard's events."""
        return self.path / "tensorboard"

    @property
    def tokenizer_dir(self) -> Path:
        """The tokenizer that made its rows."""
        return self.path / "tokenizer"

    def exists(self) -> bool:
        """Whether a run has been started here."""
        return self.config_path.is_file()

    def checkpoints(self, *, keep: int = 2, read_only: bool = True) -> Checkpoints:
        """Its checkpoints, opened; to be closed by the caller."""
        return Checkpoints(self.path / "checkpoints", keep=keep, read_only=read_only)

    def open(self, *classes: type) -> Experiment:
        """The experiment that this run is of, as a value.

        classes: those that config.json names and jaxpar does not ship.

        Raises:
          UserError: there is no run, or its configuration cannot be read.
        """
        return self._stored(*classes)[1]

    def resumed(self, experiment: E) -> E:
        """The experiment, with what an older run here fixes: how its files are read."""
        if not self.exists():
            return experiment
        try:
            started_in, stored = self._stored(*_classes_of(experiment))
        except UserError:  # `claim` says what is wrong.
            return experiment
        return formats.keep_reading(experiment, stored, started_in)

    def claim(self, experiment: Experiment, *, source_file: Path | None = None) -> bool:
        """Makes this the directory of an experiment; returns whether it already was.

        source_file: the experiment's file, kept as a receipt and never executed.

        Raises:
          UserError: it is the directory of another experiment; lists every field.
        """
        resumes = self.exists()
        started_in = formats.FORMAT
        if resumes:
            started_in = self._refuse_another(experiment)
        elif self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file; a run needs a directory.")
        elif (self.path / "checkpoints").exists():
            raise UserError(
                f"{self.path} has checkpoints, but no config.json says of which "
                "experiment; put it back, or choose another --run-dir."
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            config = {**to_json(experiment), "format": started_in}
            write_json(self.config_path, config)
            if source_file is not None and not resumes:
                shutil.copyfile(source_file, self.path / "experiment.py")
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be written: {error.strerror}; choose another "
                "--run-dir."
            ) from error
        return resumes

    def choose_step(self, step: Step, *, rule: StopRule | None = None) -> int:
        """The number of a step that is given by number, as "best" or "newest".

        None means best where a stopping rule ends the run, else newest.

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

    def _stored(self, *classes: type) -> tuple[int, Experiment]:
        """The format in which the run was started, and its experiment."""
        if not self.exists():
            raise UserError(f"{self.path} is no run: it has no config.json.")
        try:
            stored = json.loads(self.config_path.read_text())
        except ValueError as error:
            raise UserError(f"{self.config_path} is no JSON: {error}") from error
        if not isinstance(stored, dict):
            raise UserError(
                f"{self.config_path} holds no experiment but {stored!r:.80}."
            )
        try:
            started_in, config = formats.read_config(stored)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.config_path} has the format {stored.get('format')!r}; this "
                f"jaxpar reads formats 1 to {formats.FORMAT}: open it with a newer one."
            ) from error
        experiment = from_json(config, {**CLASSES, **{c.__name__: c for c in classes}})
        if not isinstance(experiment, Experiment):
            raise UserError(
                f"{self.config_path} holds no experiment but a "
                f"{type(experiment).__name__}."
            )
        return started_in, experiment

    def _refuse_another(self, experiment: Experiment) -> int:
        """The format in which this run was started, if it is of this experiment."""
        try:
            started_in, theirs = self._stored(*_classes_of(experiment))
        except UserError as error:
            raise UserError(
                f"{self.path} is the run of another experiment, or of another version "
                f"of its classes: {error} Choose another --run-dir, or leave it out."
            ) from error
        found = differences(experiment, theirs)
        wrong = [str(d) for d in found if not d.free]
        if not wrong:
            return started_in
        allowed = [str(d) for d in found if d.free]
        rest = f" (These may differ: {'; '.join(allowed)}.)" if allowed else ""
        raise UserError(
            f"{self.path} is the run of another experiment: {'; '.join(wrong)}.{rest} "
            "Choose another --run-dir, or leave it out."
        )


def default_dir(stem: str, experiment: Experiment, **replaced: Any) -> Path:
    """runs/STEM-FINGERPRINT, where an experiment goes if no directory is given."""
    return Path("runs") / f"{stem}-{fingerprint(experiment, **replaced)}"


def _classes_of(value: Any) -> tuple[type, ...]:
    """The classes that a configuration is made of, a user's own among them."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return ()
    inner = (getattr(value, f.name) for f in dataclasses.fields(value))
    return (type(value), *(c for item in inner for c in _classes_of(item)))
