"""How a run ended, in words and as an exit status."""

import dataclasses
from typing import Any

from jaxpar.errors import STOPPED_ON_REQUEST
from jaxpar.experiment import Experiment
from jaxpar.optim.schedule import Schedule
from jaxpar.partition import cluster
from jaxpar.run.directory import RunDir
from jaxpar.train.loop import History


@dataclasses.dataclass(frozen=True)
class Outcome:
    """At which step a session ended, why, and the newest held-out evaluation.

    best: the best evaluation that the stopping rule has seen. interrupted: a signal
    ended it; the state was saved. xz: nats per byte of xz -9 on the held-out bytes.
    time: where the run's time went, in words. commands: what can be typed next.
    """

    step: int
    reason: str
    heldout: dict[str, Any] | None
    best: dict[str, Any] | None
    interrupted: bool
    xz: float | None
    time: str = ""
    unit: str = "nats/token"
    """Of the best evaluation: what the stopping rule watches."""
    commands: tuple[str, ...] = ()

    def report(self, run_dir: RunDir) -> int:
        """Prints where the run is and what can be done next; the exit status."""
        for line in self._lines(run_dir):
            cluster.print_once(line)
        if self.interrupted:
            cluster.print_once("The same command goes on from there.")
            return STOPPED_ON_REQUEST
        if self.commands:
            cluster.print_once("\n  ".join(("Next:", *self.commands)))
        return 0

    def _lines(self, run_dir: RunDir) -> list[str]:
        lines = [f"{run_dir.path} is at step {self.step}: {self.reason}."]
        if score := self.heldout:
            beside = "" if self.xz is None else f"; xz -9 reaches {self.xz:.4f} on the "
            beside = beside and f"{beside}same bytes"
            lines.append(
                f"Held out at step {score['step']}: "
                f"{_decimals(score['nats_per_byte'])} nats/byte{beside}; "
                f"{_decimals(score['nats_per_token'])} nats/token."
            )
        if score and "objective" in score:
            value = score["objective"]
            lines.append(
                f"Its own objective, {score['objective_name']}: "
                f"{'not finite' if value is None else f'{value:.4f}'}."
            )
        if best := self.best:
            lines.append(
                f"Best at step {best['step']}: {best['loss']:.4f} {self.unit}; its "
                "checkpoint is kept, and is the one that evaluate and generate take."
            )
        return [*lines, self.time] if self.time else lines


def _decimals(value: float | None) -> str:
    """A score; metrics.jsonl has null for one that is not finite."""
    return "not a finite number of" if value is None else f"{value:.4f}"


def why_finished(experiment: Experiment, step: int, memory: dict[str, Any]) -> str:
    """Why a run at this step has nothing left to do; empty where it has."""
    if memory.get("stopped"):
        return memory["stopped"]
    if step >= experiment.num_steps:
        of = "the last" if step == experiment.num_steps else "past the last"
        return f"step {step} is {of} of num_steps={experiment.num_steps}"
    return ""


def why_ended(experiment: Experiment, step: int, history: History) -> str:
    """Why the loop came to its end."""
    if history.interrupted:
        return f"stopped on request ({history.signal}) and saved"
    if history.stop:
        return history.stop.reason
    early = unfinished(experiment.optim.schedule, step, history.decay_from)
    return f"num_steps={experiment.num_steps} reached{early}"


def unfinished(schedule: Schedule, step: int, decay_from: int) -> str:
    """What to say where the steps ended before the learning rate's decay did."""
    ends = schedule.ends(decay_from)
    if ends is None and schedule.ends(step) is None:
        return ""  # It never decays, whatever a rule asks for.
    if ends is None:
        return (
            "; the learning rate has not begun to decay, which it does once the "
            "stopping rule finds convergence: raise num_steps to go on"
        )
    if step < ends:
        return (
            f"; the learning rate's decay would end at step {ends}: raise num_steps "
            "to go on"
        )
    return ""
