"""Where a fine-tune starts from: a run, known by its content, and a step of it."""

import dataclasses
import functools
import glob
from pathlib import Path
from typing import Any

from jaxpar import cache
from jaxpar.checkpoint import step_directories
from jaxpar.checkpoint.verified import Check
from jaxpar.config import differences, fingerprint
from jaxpar.errors import UserError
from jaxpar.experiment import Experiment, Finetune
from jaxpar.partition import cluster
from jaxpar.run.directory import RunDir, Step, classes_of

UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Origin:
    """The source of a fine-tune, chosen when it begins and kept in its receipt."""

    identity: str
    """Of the source; see Source.identity. jaxpar 0.1 wrote the experiment's alone."""
    step: int
    asked: Step = None
    """As what the step was asked for; UNKNOWN of runs that jaxpar 0.1 began."""

    @property
    def spelling(self) -> str:
        """As receipts have it: IDENTITY@STEP."""
        return f"{self.identity}@{self.step}"

    @property
    def facts(self) -> dict[str, Any]:
        """What the receipt keeps."""
        return {"start_from": self.spelling, "asked_step": self.asked}

    def answers(self, asked: Step) -> bool:
        """Whether a command that asks for this step is the one that began here."""
        if isinstance(asked, int):
            return asked == self.step
        return self.asked in (asked, UNKNOWN)


class Source:
    """The run that a fine-tune names as its source, which may be gone by now."""

    def __init__(self, path: str, *classes: type):
        self.path, self.classes = path, classes

    @functools.cached_property
    def run_dir(self) -> RunDir:
        """Its directory."""
        return RunDir(self.path)

    @functools.cached_property
    def experiment(self) -> Experiment:
        """Its experiment; UserError where there is none."""
        return self.run_dir.open(*self.classes)

    @functools.cached_property
    def identity(self) -> str:
        """16 hexadecimal digits over all that its parameters came from.

        These are its experiment, the content of its data, its tokenizer and, where it
        is a fine-tune, its own origin: so each link of a chain has the ones before.
        """
        first = next(iter(self.run_dir.receipt.sessions()), {})
        data = first.get("data") or {}
        return cache.key(
            experiment=fingerprint(self.experiment),
            data=[data.get("content"), data.get("tokenizer")],
            start_from=first.get("start_from"),
        )

    @functools.cached_property
    def why_unreadable(self) -> str:
        """Why it cannot be opened; empty where it can."""
        try:
            self.identity  # noqa: B018
        except (UserError, OSError) as error:
            return str(error)
        return ""

    def is_of(self, origin: Origin) -> bool:
        """Whether a fine-tune that began there began from this run."""
        return origin.identity in (self.identity, fingerprint(self.experiment))

    def choose(self, asked: Step, check: Check | None) -> Origin:
        """The step that is asked for, or would be by default, as process 0 finds it."""
        rule = self.experiment.stop
        step = self.run_dir.choose_step(asked, rule=rule, check=check)
        return Origin(self.identity, cluster.broadcast(step), asked)


def has_saved(run: RunDir) -> bool:
    """Whether a run has saved a step, in any process that asks."""
    folder = run.checkpoints_dir
    steps = step_directories.numbers(folder) if folder.is_dir() else []
    found = bool(steps or run.saved_steps.evidence(run.metrics_path))
    return cluster.broadcast(found)


def begun_from(run: RunDir) -> Origin | None:
    """Where a fine-tune that exists began; None where its receipt says nothing."""
    for session in run.receipt.sessions():
        identity, at, step = str(session.get("start_from")).partition("@")
        if at and step.isdigit():
            return Origin(identity, int(step), session.get("asked_step", UNKNOWN))
    return None


def find_begun(
    stem: str, experiment: Finetune, source: Source, asked: Step, check: Check | None
) -> RunDir | None:
    """The default directory in which the same command began before, if it did.

    Its name has the step that was the source's newest then, which may have changed.

    Raises:
      UserError: there are several.
    """
    paths = sorted(Path("runs").glob(f"{glob.escape(stem)}-*"))
    begun = [
        (RunDir(path), origin)
        for path in paths
        if (origin := _origin_if_same(RunDir(path), experiment, source))
        and origin.answers(asked)
    ]
    if len(begun) > 1 and not source.why_unreadable:
        chosen = source.choose(asked, check).step
        begun = [each for each in begun if each[1].step == chosen] or begun
    if len(begun) > 1:
        names = ", ".join(str(run.path) for run, _ in begun)
        raise UserError(
            f"{names} are fine-tunes of this experiment from {source.path}; name the "
            "one to go on with by --run-dir."
        )
    return begun[0][0] if begun else None


def require_same(run: RunDir, begun: Origin, source: Source, asked: Step) -> None:
    """Refuses a source, or a step of it, other than a fine-tune began from.

    A source that is gone is not needed any more, and one that has trained on is the
    same.

    Raises:
      UserError: it is another run, or another step is asked for by its number.
    """
    identity = begun.identity
    if source.why_unreadable:
        cluster.print_once(
            f"{source.path} cannot be opened, and is not needed: {run.path} goes on "
            f"by itself. ({source.why_unreadable})"
        )
    elif not source.is_of(begun):
        identity = source.identity
    step = asked if isinstance(asked, int) else begun.step
    now = Origin(identity, step)
    if now.spelling != begun.spelling:
        raise UserError(
            f"{run.path} started from the run and step {begun.spelling}, --start-from "
            f"is now {now.spelling}; restore it, or start a new run with another "
            "--run-dir."
        )


def _origin_if_same(run: RunDir, experiment: Finetune, source: Source) -> Origin | None:
    """Where a run began, if it is this fine-tune, from this source."""
    try:
        stored = run.open(*classes_of(experiment), *source.classes)
        origin = begun_from(run)
    except UserError:
        return None
    if origin is None or not isinstance(stored, Finetune):
        return None
    ours = run.resumed(experiment.with_model_of(lambda: stored))
    if not all(found.free for found in differences(ours, stored)):
        return None
    if source.why_unreadable:
        return origin if stored.start_from == experiment.start_from else None
    return origin if source.is_of(origin) else None
