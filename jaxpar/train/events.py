"""Events that know no checkpoint: log, evaluate, decide."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxpar.errors import Diverged
from jaxpar.train.actions import Action, Stop
from jaxpar.train.converge import Memory, StopRule, phase_of
from jaxpar.train.loop import Event, History
from jaxpar.train.scoring import per_token_and_byte, total_loss
from jaxpar.train.state import TrainState

Write = Callable[[dict[str, Any]], None]


class Log:
    """Writes every step's metrics, many steps at a time.

    before: events that must find all earlier steps written when they run.
    complete: adds to a fetched row what a meter knows (tokens/s, MFU).
    """

    def __init__(
        self,
        write: Write,
        *,
        every: int,
        complete: Callable[[dict], dict] = dict,
        before: Sequence[Event] = (),
    ):
        self._write, self._every = write, every
        self._complete, self._before = complete, before

    def due(self, step: int, history: History) -> bool:
        return (
            step % self._every == 0
            or step == history.num_steps
            or any(event.due(step, history) for event in self._before)
        )

    def run(self, step: int, state: TrainState, history: History) -> Action:
        for row in history.fetch():
            self._write(self._complete(row))
            if not math.isfinite(row["loss"]):
                raise Diverged(
                    f"The training loss of step {row['step']} is {row['loss']}; lower "
                    "optim.peak_lr or clip gradients. The last checkpoint is intact."
                )


class Evaluate:
    """Scores the whole held-out set: at step 0, on schedule, where a decay ends, last.

    schedule: asked for `ends`, the step where its decay is over.
    """

    def __init__(
        self,
        eval_step: Callable,
        batches: Iterable[Any],
        write: Write,
        *,
        every: int,
        schedule: Any,
        n_bytes: int,
        split: str = "heldout",
    ):
        self._eval_step, self._batches, self._write = eval_step, batches, write
        self._every, self._schedule = every, schedule
        self._n_bytes, self._split = n_bytes, split

    def due(self, step: int, history: History) -> bool:
        return self.regular(step, history) or step == history.num_steps

    def regular(self, step: int, history: History) -> bool:
        """Whether this evaluation would take place whatever num_steps is."""
        return step % self._every == 0 or step == self._schedule.ends(
            history.decay_from
        )

    def run(self, step: int, state: TrainState, history: History) -> Action:
        with history.aside():
            totals = total_loss(self._eval_step, state.params, self._batches)
        found = per_token_and_byte(totals, self._n_bytes)
        self._write({"step": step, "split": self._split, **found})
        loss = found["nats_per_token"]
        history.evaluation = (step, math.nan if loss is None else loss)


class Decide:
    """Hands each evaluation to the stopping rule, and keeps the rule's memory.

    memory: {"rule": the rule's own, "stopped": why, or None, "step": of the newest
    decision}; JSON, saved with the state. The last step of a run is evaluated off
    schedule: it can be the best one, but takes no part in decisions, since a longer
    run would not have seen it.
    """

    def __init__(
        self,
        rule: StopRule,
        evaluation: Evaluate,
        schedule: Any,
        memory: Memory | None = None,
    ):
        self._rule, self._evaluation, self._schedule = rule, evaluation, schedule
        self.memory = memory or {"rule": rule.start(), "stopped": None, "step": -1}

    def due(self, step: int, history: History) -> bool:
        if history.evaluation is None or history.evaluation[0] != step:
            return False
        # A run resumed at step 0 evaluates it again, and must not count it twice.
        return step > self.memory["step"]

    def run(self, step: int, state: TrainState, history: History) -> Action:
        if history.evaluation is None:
            return None
        before, loss = self.memory["rule"], history.evaluation[1]
        phase = phase_of(self._schedule, step, history.decay_from)
        after, wish, is_best = self._rule.observe(before, step, loss, phase)
        if is_best:
            history.best_at = step
        if not self._evaluation.regular(step, history):
            if is_best:
                self.memory = {**self.memory, "rule": {**before, "best": after["best"]}}
            return None
        stopped = wish.reason if isinstance(wish, Stop) else None
        self.memory = {"rule": after, "stopped": stopped, "step": step}
        return wish
