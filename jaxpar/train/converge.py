"""Early stopping: rules that decide from the held-out loss when to stop."""

import abc
import dataclasses
import enum
import itertools
import math
from typing import Any, Literal, NamedTuple, get_args

from jaxpar.config import added
from jaxpar.errors import UserError
from jaxpar.optim.schedule import NEVER, Schedule
from jaxpar.train.actions import Action, StartDecay, Stop

Watched = Literal["nats_per_token", "objective"]
Memory = dict[str, Any]
"""What a rule remembers between evaluations: JSON, saved in the checkpoint."""

# The lowest of many smoothed losses lies about two standard deviations below their
# mean; twice that is clearly more than noise.
NOISES = 4


class Phase(enum.StrEnum):
    """What the learning rate is doing at a step."""

    WARMUP = "warmup"
    """It rises."""
    PLATEAU = "plateau"
    """It is constant, and StartDecay would begin its decay."""
    DECAY = "decay"
    """It falls, or will fall at a step that is fixed already."""
    FINAL = "final"
    """Its decay is over, and it stays above zero."""
    ZERO = "zero"
    """Its decay is over, and it stays at zero: nothing will change any more."""


class Verdict(NamedTuple):
    """What a stopping rule concludes from one evaluation."""

    memory: Memory
    """The rule's memory from now on."""
    action: Action
    """What the loop should do."""
    is_best: bool
    """Whether this evaluation is the best one so far."""


@dataclasses.dataclass(frozen=True)
class StopRule(abc.ABC):
    """Decides after each evaluation whether to train on; keeps no state of its own."""

    watch: Watched = added("nats_per_token")
    """Which held-out loss decides: nats_per_token, or the mean of the objective."""

    def __post_init__(self):
        if self.watch not in get_args(Watched):
            allowed = " or ".join(get_args(Watched))
            raise UserError(f"watch={self.watch!r}: it must be {allowed}.")

    @property
    def unit(self) -> str:
        """Of the loss that it watches, in words."""
        return "nats/token" if self.watch == "nats_per_token" else "by the objective"

    @abc.abstractmethod
    def start(self) -> Memory:
        """The memory before the first evaluation."""

    @abc.abstractmethod
    def observe(self, memory: Memory, step: int, loss: float, phase: Phase) -> Verdict:
        """Takes the next evaluation into account: the held-out loss at a step.

        loss: nats per token, or what `watch` names; NaN where there is none. phase: of
        the learning rate.
        """


@dataclasses.dataclass(frozen=True)
class Never(StopRule):
    """Trains until num_steps, and marks no checkpoint as the best."""

    def start(self) -> Memory:
        return {}

    def observe(self, memory: Memory, step: int, loss: float, phase: Phase) -> Verdict:
        return Verdict(memory, None, False)


@dataclasses.dataclass(frozen=True)
class Converged(StopRule):
    """Stops when the held-out loss has stagnated or rises again (over-fitting).

    Both are judged on the smoothed loss, the mean of the last `smoothing` evaluations.

    *Stagnation*: the smoothed loss has not fallen by the fraction `min_improvement`
    since an evaluation that is at least `patience` evaluations old and was made within
    the first `share` of the steps done so far. Loss curves flatten in the logarithm of
    steps: if the second half of a run brought no improvement, training twice as long
    will bring none either. So with share=0.5 the rule means "twice the steps would
    improve the loss by less than min_improvement", for any length of run and any
    evaluation interval. With share=1 only the number of evaluations counts; that stops
    every long run, since each evaluation improves less than the one before.

    *Over-fitting*: the last `patience` evaluations all lie above the lowest smoothed
    loss, by more than the fraction `min_improvement` and by more than noise (four times
    the mean difference between successive evaluations), and the smoothed loss is at
    its highest since that lowest one. The last condition ignores a spike from which
    the loss is recovering.

    What follows depends on the learning rate:

    * Constant, with a decay still to come: the run has converged *at this rate* only,
      and the decay will still lower the loss much. Either finding begins the decay
      (StartDecay), and the smoothed curve starts afresh, since a decay changes it.
    * Falling (a cosine always is): stagnation is ignored, since a flat curve does not
      tell where the decay will end. Over-fitting stops: a lower rate fits the training
      rows more closely, and does not make the held-out loss fall again.
    * Warming up: both are ignored, and so is a loss that is not finite at any time.
    * At the end of a decay that this rule began, or at zero: stops at that step.
    * At the end of a decay that was planned, and above zero: either finding stops.

    The best checkpoint is the one of lowest raw loss; smoothing serves decisions only.
    """

    patience: int = 5
    """Evaluations that must show no improvement, or over-fitting; 1 or more."""
    min_improvement: float = 0.01
    """Smallest change that counts, as a fraction of the smoothed loss; 0 to below 1."""
    smoothing: int = 3
    """Evaluations whose mean is the smoothed loss; 1 does not smooth."""
    share: float = 0.5
    """Fraction of the steps done that holds the last improvement; 1: patience alone."""

    def __post_init__(self):
        super().__post_init__()
        if self.patience < 1 or self.smoothing < 1:
            raise UserError(
                f"patience={self.patience} and smoothing={self.smoothing} count "
                "evaluations; each must be 1 or more."
            )
        if not 0 <= self.min_improvement < 1 or not 0 < self.share <= 1:
            raise UserError(
                f"min_improvement={self.min_improvement} must be at least 0 and below "
                f"1, share={self.share} above 0 and at most 1: they are fractions."
            )

    def start(self) -> Memory:
        return {"best": None, "asked": False, **_empty_curve()}

    def observe(self, memory: Memory, step: int, loss: float, phase: Phase) -> Verdict:
        best = memory["best"]
        is_best = math.isfinite(loss) and (best is None or loss < best["loss"])
        if is_best:
            memory = {**memory, "best": {"step": step, "loss": loss}}
        if phase == Phase.ZERO or (phase == Phase.FINAL and memory["asked"]):
            stop = Stop("converged: the learning rate has decayed")
            return Verdict(memory, stop, is_best)
        if phase == Phase.WARMUP or not math.isfinite(loss):
            return Verdict(memory, None, is_best)
        memory = self._extend_curve(memory, step, loss)
        reason = self._overfits(memory)
        if not reason and phase in (Phase.PLATEAU, Phase.FINAL):
            reason = self._stagnates(memory, step)
        if not reason:
            return Verdict(memory, None, is_best)
        if phase == Phase.PLATEAU:
            memory = {**memory, "asked": True, **_empty_curve()}
            return Verdict(memory, StartDecay(), is_best)
        return Verdict(memory, Stop(reason), is_best)

    def _extend_curve(self, memory: Memory, step: int, loss: float) -> Memory:
        """The memory with one more evaluation in the smoothed curve."""
        recent = [*memory["recent"], loss][-(self.smoothing + 2 * self.patience) :]
        memory = {**memory, "recent": recent}
        if len(recent) < self.smoothing:
            return memory
        smooth = sum(recent[-self.smoothing :]) / self.smoothing
        memory["smooth"] = smooth
        memory["since_mark"] += 1
        mark, lowest = memory["mark"], memory["lowest"]
        if mark is None or smooth < mark["loss"] * (1 - self.min_improvement):
            memory |= {"mark": {"step": step, "loss": smooth}, "since_mark": 0}
        if lowest is None or smooth < lowest["loss"]:
            low = {"step": step, "loss": smooth}
            return memory | {"lowest": low, "above": 0, "highest": smooth}
        margin = max(self.min_improvement * lowest["loss"], NOISES * _noise(recent))
        is_above = loss > lowest["loss"] + margin
        memory["above"] = memory["above"] + 1 if is_above else 0
        return memory | {"highest": max(memory["highest"], smooth)}

    def _overfits(self, memory: Memory) -> str:
        """How the loss shows over-fitting; empty where it does not."""
        lowest, smooth = memory["lowest"], memory["smooth"]
        if memory["above"] < self.patience or smooth < memory["highest"]:
            return ""
        return (
            f"over-fitting: held-out loss rose from {lowest['loss']:.4f} at step "
            f"{lowest['step']} to {smooth:.4f} {self.unit}"
        )

    def _stagnates(self, memory: Memory, step: int) -> str:
        """How the loss has stagnated; empty where it has not."""
        mark = memory["mark"]
        if mark is None or memory["since_mark"] < self.patience:
            return ""
        if mark["step"] > self.share * step:
            return ""
        return (
            f"converged: held-out loss fell less than {self.min_improvement:.1%} since "
            f"step {mark['step']} ({mark['loss']:.4f} {self.unit})"
        )


def _noise(losses: list[float]) -> float:
    """Mean difference of successive losses.

    For independent normal noise it is 1.1 times the standard deviation.
    """
    differences = [abs(b - a) for a, b in itertools.pairwise(losses)]
    return sum(differences) / max(len(differences), 1)


def _empty_curve() -> Memory:
    """The smoothed curve before its first evaluation.

    mark: the last improvement by min_improvement, since_mark: evaluations since then.
    lowest: the lowest smoothed loss; above: successive evaluations clearly above it;
    highest: the highest smoothed loss since.
    """
    return {
        "recent": [], "smooth": None, "mark": None, "since_mark": 0,
        "lowest": None, "above": 0, "highest": None,
    }  # fmt: skip


def phase_of(schedule: Schedule, step: int, decay_from: int) -> Phase:
    """The learning rate's phase at a step, found from its values and its end."""
    ends = schedule.ends(decay_from)
    now, after = (float(schedule(i, decay_from)) for i in (step, step + 1))
    if ends is not None and step >= ends:
        return Phase.FINAL if now > 0 else Phase.ZERO
    if after > now:
        return Phase.WARMUP
    # Would a decay that begins at this step end at another one?
    can_begin = decay_from == NEVER and schedule.ends(step) != ends
    return Phase.PLATEAU if can_begin else Phase.DECAY
