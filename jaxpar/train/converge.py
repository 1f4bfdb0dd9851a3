"""When to stop: rules that watch the held-out loss."""

import dataclasses
import itertools
import math
from typing import Any

from jaxpar.errors import UserError
from jaxpar.train.actions import Action, StartDecay, Stop
from jaxpar.train.state import NEVER

Memory = dict[str, Any]
WARMUP, PLATEAU, DECAY, OVER, STILL = "warmup", "plateau", "decay", "over", "still"
# The lowest of many smoothed losses lies some two deviations below their mean.
NOISES = 4


@dataclasses.dataclass(frozen=True)
class StopRule:
    """Reads evaluations one by one; what it remembers is JSON in the checkpoint."""

    def start(self) -> Memory:
        """The memory of a rule that has seen nothing."""
        raise NotImplementedError(f"{type(self).__name__} has no memory.")

    def observe(
        self, memory: Memory, step: int, loss: float, phase: str
    ) -> tuple[Memory, Action, bool]:
        """(new memory, wish, whether this evaluation is the best so far).

        phase is of the learning rate: WARMUP; PLATEAU (it holds, and StartDecay would
        begin its decay); DECAY (it falls, or will fall without being asked); OVER (it
        has fallen to what it stays at); STILL (to zero: nothing will move again).
        """
        raise NotImplementedError(f"{type(self).__name__} observes nothing.")


@dataclasses.dataclass(frozen=True)
class Never(StopRule):
    """Trains to num_steps, and calls no checkpoint the best."""

    def start(self) -> Memory:
        return {}

    def observe(self, memory, step, loss, phase):
        return memory, None, False


@dataclasses.dataclass(frozen=True)
class Converged(StopRule):
    """Ends where training on is not worth it, in one of two ways.

    *Stagnation*: the smoothed loss (mean of the last `smoothing` evaluations) has not
    fallen by the fraction `min_improvement` since an evaluation that is at least
    `patience` evaluations old and lies at or before `share` of the steps done. Loss
    curves flatten in the logarithm of steps: what the second half of a run did not
    gain, a second run of the same length will not gain either. So with share=0.5 the
    rule means "twice the steps would improve less than min_improvement", at any length
    of run and of evaluation interval. A patience counted in evaluations alone, which is
    share=1, stops every long run, since each evaluation improves ever less.

    *Over-fitting*: the last `patience` evaluations all lie above the lowest smoothed
    loss, by more than `min_improvement` and by more than noise (four times the mean
    step between neighbours), and the smoothed loss stands at its highest since. The
    last condition lets a spike pass that is healing.

    What they lead to depends on the learning rate:

    * It holds, and a decay is to come: either one is convergence *at this rate* only;
      much loss is still to be had from the decay, so the wish is StartDecay, and the
      watch begins anew, since a decay changes the curve.
    * It falls (a cosine always does): flatness says nothing about where the decay will
      end, so stagnation never stops; in the warm-up nothing counts at all. Over-fitting
      stops: a lower rate fits the training rows more closely, and does not turn the
      held-out loss around.
    * A decay that we began is over, or the rate is zero: Stop, at that step.
    * The rate has fallen on its own and stays low: either one stops.

    The best checkpoint is the one of lowest raw loss: smoothing is for decisions.
    """

    patience: int = 5
    min_improvement: float = 0.01
    smoothing: int = 3
    share: float = 0.5

    def __post_init__(self):
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
        return {"best": None, "asked": False, **_unwatched()}

    def observe(self, memory, step, loss, phase):
        best = memory["best"]
        is_best = math.isfinite(loss) and (best is None or loss < best["loss"])
        if is_best:
            memory = {**memory, "best": {"step": step, "loss": loss}}
        if phase == STILL or (phase == OVER and memory["asked"]):
            return memory, Stop("converged: the learning rate has decayed"), is_best
        if phase == WARMUP:
            return memory, None, is_best
        memory = self._watch(memory, step, loss)
        why = self._overfits(memory)
        if not why and phase in (PLATEAU, OVER):
            why = self._stagnates(memory, step)
        if not why:
            return memory, None, is_best
        if phase == PLATEAU:
            return {**memory, "asked": True, **_unwatched()}, StartDecay(), is_best
        return memory, Stop(why), is_best

    def _watch(self, memory: Memory, step: int, loss: float) -> Memory:
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
        clear = max(self.min_improvement * lowest["loss"], NOISES * _noise(recent))
        above = loss > lowest["loss"] + clear
        memory["above"] = memory["above"] + 1 if above else 0
        return memory | {"highest": max(memory["highest"], smooth)}

    def _overfits(self, memory: Memory) -> str:
        lowest, smooth = memory["lowest"], memory["smooth"]
        if memory["above"] < self.patience or smooth < memory["highest"]:
            return ""
        return (
            f"over-fitting: held-out loss rose from {lowest['loss']:.4f} at step "
            f"{lowest['step']} to {smooth:.4f} nats/token"
        )

    def _stagnates(self, memory: Memory, step: int) -> str:
        mark = memory["mark"]
        if mark is None or memory["since_mark"] < self.patience:
            return ""
        if mark["step"] > self.share * step:
            return ""
        return (
            f"converged: held-out loss fell less than {self.min_improvement:.1%} since "
            f"step {mark['step']} ({mark['loss']:.4f} nats/token)"
        )


def _noise(losses: list[float]) -> float:
    """The mean step between neighbours; of independent noise, 1.1 x its deviation."""
    steps = [abs(b - a) for a, b in itertools.pairwise(losses)]
    return sum(steps) / max(len(steps), 1)


def _unwatched() -> Memory:
    return {
        "recent": [], "smooth": None, "mark": None, "since_mark": 0,
        "lowest": None, "above": 0, "highest": None,
    }  # fmt: skip


def phase_of(schedule, step: int, decay_from: int) -> str:
    """Where a schedule stands at a step; it is asked for rates, not for its type."""
    ends = schedule.ends(decay_from)
    now, after = (float(schedule(at, decay_from)) for at in (step, step + 1))
    if ends is not None and step >= ends:
        return OVER if now > 0 else STILL
    if after > now:
        return WARMUP
    # A schedule that can be told to decay ends elsewhere once it was told.
    waits = decay_from == NEVER and schedule.ends(step) != ends
    return PLATEAU if waits else DECAY
