"""A run directory: configuration, receipt, metrics, tokenizer, checkpoints."""

import contextlib
import dataclasses
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from jaxpar.checkpoint import step_directories, verified
from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.checkpoint.paths import run_path
from jaxpar.checkpoint.verified import Check
from jaxpar.config import Spelled, differences, fingerprint, from_json, to_json
from jaxpar.errors import NoUsableCheckpoint, UserError
from jaxpar.experiment import CLASSES, Experiment
from jaxpar.guard.lock import require_writable
from jaxpar.guard.sealed_json import read_json, write_json
from jaxpar.run import formats
from jaxpar.run.formats import E
from jaxpar.run.receipt import Receipt
from jaxpar.run.saved_steps import SavedSteps
from jaxpar.train.converge import Never, StopRule

Step = int | str | None
"""A checkpoint: its number, "best" or "newest"; None: best where a rule stops a run."""


class RunDir:
    """A handle on the directory of one run."""

    def __init__(self, path: str | Path):
        """path: its directory.

        Raises:
          UserError: no run can be kept or read at this path; see run_path.
        """
        self.path = run_path(path)

    @property
    def config_path(self) -> Path:
        """The experiment, as JSON."""
        return self.path / "config.json"

    @property
    def receipt(self) -> Receipt:
        """What each session was made with."""
        return Receipt(self.path / "receipt.json")

    @property
    def checkpoints_dir(self) -> Path:
        """A directory for each step that is kept."""
        return self.path / "checkpoints"

    @property
    def saved_steps(self) -> SavedSteps:
        """The record of what was saved."""
        return SavedSteps(self.path / "saved.json")

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

    def require_writable(self) -> None:
        """Refuses a run that cannot be written; see jaxpar.guard.lock."""
        folders = self.path, self.checkpoints_dir, self.tensorboard_dir
        require_writable(*folders, appended=self.metrics_path)

    def exists(self) -> bool:
        """Whether a run has been started here."""
        return self.config_path.is_file()

    def checkpoints(
        self,
        *,
        keep: int = 2,
        read_only: bool = True,
        bound: Mapping[str, str] | None = None,
    ) -> Checkpoints:
        """Its checkpoints, opened; to be closed by the caller."""
        return Checkpoints(
            self.checkpoints_dir,
            keep=keep,
            read_only=read_only,
            on_commit=self.saved_steps.add,
            bound=bound,
        )

    def check(self, check: Check) -> tuple[list[int], dict[int, list[str]]]:
        """The good steps, and the damaged files of each other; reasons on stderr.

        Raises:
          UserError: there is no run, or it has no checkpoint yet.
          NoUsableCheckpoint: it has saved steps, and none is there.
        """
        self._require_run()
        good, bad = verified.check_all(self.checkpoints_dir, check)
        if not good and not bad:
            self._refuse_no_step()
        return good, bad

    def require_nothing_saved(self) -> None:
        """Refuses a run that has saved steps, for where none of them is there.

        Raises:
          NoUsableCheckpoint: it has; says by what it is known.
        """
        if not (evidence := self.saved_steps.evidence(self.metrics_path)):
            return
        aside = step_directories.moved_aside(self.checkpoints_dir)
        there = f"only {', '.join(aside)}" if aside else "none"
        raise NoUsableCheckpoint(
            f"{self.path}: {evidence}, but there is {there} in {self.checkpoints_dir}. "
            "Restore its checkpoints, or start anew with another --run-dir."
        )

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
            started_in, stored = self._stored(*classes_of(experiment))
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
            if not resumes:
                self.saved_steps.begin()
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

    def choose_step(
        self, step: Step, *, rule: StopRule | None = None, check: Check | None = None
    ) -> int:
        """The number of a good step that is given by number, as "best" or "newest".

        None means best where a stopping rule ends the run, else newest. Of steps that
        are not given by number, a damaged one is passed over for an older one, with a
        line on stderr. check: how steps are verified; fully where nothing is said.

        Raises:
          UserError: there is no such checkpoint.
          NoUsableCheckpoint: it is damaged, and none may be taken instead.
        """
        check = check or Check()
        self._require_run()
        if not self.checkpoints_dir.is_dir():
            self._refuse_no_step()
        with contextlib.closing(self.checkpoints()) as checkpoints:
            steps, marked = checkpoints.steps(), checkpoints.marked_best()
        if not steps:
            self._refuse_no_step()
        if step is None:
            step = "newest" if rule is None or isinstance(rule, Never) else "best"
        if step == "newest":
            return verified.newest_good(self.checkpoints_dir, steps, check)
        if step == "best":
            marked = verified.best_of(self.checkpoints_dir, steps, marked, check)
            return verified.newest_good(self.checkpoints_dir, steps, check, best=marked)
        if str(step) not in map(str, steps):
            raise UserError(
                f'{self.path} has no step {step}; there are {steps}, "best" and '
                '"newest".'
            )
        verified.require_good(self.checkpoints_dir, int(step), check)
        return int(step)

    def _require_run(self) -> None:
        if not self.exists():
            lacks = "it has no config.json" if self.path.is_dir() else "it is not there"
            raise UserError(f"{self.path} is not a run: {lacks}.")

    def _refuse_no_step(self) -> NoReturn:
        """Says that no step was saved yet, or that those which were are gone."""
        self.require_nothing_saved()
        raise UserError(f"{self.path} has no checkpoint yet.")

    def _stored(self, *classes: type) -> tuple[int, Experiment]:
        """The format in which the run was started, and its experiment."""
        self._require_run()
        stored = read_json(self.config_path, remedy="Restore it from a copy.")
        try:
            started_in, config = formats.read_config(stored)
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{self.config_path} has the format {stored.get('format')!r}; this "
                f"jaxpar reads formats 1 to {formats.FORMAT}: open it with a newer one."
            ) from error
        known = {**CLASSES, **{c.__name__: c for c in classes}}
        try:
            experiment = from_json(config, known)
        except UserError as error:
            raise UserError(f"{error}{self._where_classes_are()}") from error
        if not isinstance(experiment, Experiment):
            raise UserError(
                f"{self.config_path} holds no experiment but a "
                f"{type(experiment).__name__}."
            )
        return started_in, experiment

    def _where_classes_are(self) -> str:
        """From which files the newest session took its classes, for a message."""
        with contextlib.suppress(UserError):
            files = next(iter(self.receipt.sessions()[-1:]), {}).get("files")
            if files:
                return f" It was trained with --import {shlex.join(files)}."
        return ""

    def _refuse_another(self, experiment: Experiment) -> int:
        """The format in which this run was started, if it is of this experiment."""
        try:
            started_in, theirs = self._stored(*classes_of(experiment))
        except UserError as error:
            raise UserError(
                f"{self.path} is the run of another experiment, or of another version "
                f"of its classes: {error} Choose another --run-dir, or leave it out."
            ) from error
        found = differences(experiment, theirs)
        if isinstance(experiment.stop, Never) and isinstance(theirs.stop, Never):
            # Only a stopping rule reads evaluations, so no number depends on when.
            found = [
                dataclasses.replace(d, free=d.free or d.path == "eval_every")
                for d in found
            ]
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


def classes_of(value: Any) -> tuple[type, ...]:
    """The classes that a configuration is made of, a user's own among them."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return ()
    if isinstance(value, Spelled):  # A configuration has its text alone.
        return (type(value),)
    inner = (getattr(value, f.name) for f in dataclasses.fields(value))
    return (type(value), *(c for item in inner for c in classes_of(item)))
