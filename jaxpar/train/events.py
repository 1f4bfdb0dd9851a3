"""Events (callbacks) of every run: log, evaluate, stop; run/saving.py saves."""

import math
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from jaxpar.errors import UserError
from jaxpar.guard import phases
from jaxpar.metrics.sinks import Row
from jaxpar.optim.schedule import Schedule
from jaxpar.partition import cluster
from jaxpar.train.actions import Action, Stop
from jaxpar.train.converge import Memory, Never, StopRule, phase_of
from jaxpar.train.loop import Evaluation, Event, History
from jaxpar.train.nonfinite import stop_at_loss
from jaxpar.train.objective import Objective
from jaxpar.train.scoring import per_token_and_byte, total_loss
from jaxpar.train.spikes import Judge
from jaxpar.train.state import TrainState

Write = Callable[[Row], None]


class Log:
    """Fetches and writes the metrics of all steps since it last ran.

    every: steps between two runs. with_rates: adds tokens per second and MFU to a
    row. flush_before: events before which the rows of all earlier steps are written.
    judge: from a step's row to the row to write, and an error to raise then, or None.
    """

    def __init__(
        self,
        write: Write,
        *,
        every: int,
        with_rates: Callable[[Row], Row] = dict,
        flush_before: Sequence[Event] = (),
        judge: Judge = stop_at_loss,
    ):
        self._write, self._every, self._judge = write, every, judge
        self._with_rates, self._flush_before = with_rates, flush_before

    def due(self, step: int, history: History) -> bool:
        """On schedule, before the events of `flush_before`, and at the last step."""
        return (
            step % self._every == 0
            or step == history.num_steps
            or any(event.due(step, history) for event in self._flush_before)
        )

    def run(self, step: int, state: TrainState, history: History) -> Action:
        """Writes one row per step.

        Raises:
          Diverged: a step was not applied; its row has been written.
          GoBack: a step is a loss spike, and the run has to go back.
        """
        for row in history.fetch():
            row, error = self._judge(row)
            self._write(self._with_rates(row))
            if error is not None:
                raise error


class Evaluate:
    """Computes the loss of the whole held-out set.

    eval_step: as of jaxpar.train.step.make_eval_step. every: steps between two
    evaluations. n_bytes: bytes of the scored text. objective: its name, if it is one of
    the user's own. split: the name in the rows. in_flight: as of `total_loss`.
    """

    def __init__(
        self,
        eval_step: Callable[[Any, Any], dict[str, Any]],
        batches: Iterable[Any],
        write: Write,
        *,
        every: int,
        schedule: Schedule,
        n_bytes: int,
        objective: str = "objective",
        split: str = "heldout",
        in_flight: int = 1,
    ):
        self._eval_step, self._batches, self._write = eval_step, batches, write
        self._in_flight = in_flight
        self._every, self._schedule = every, schedule
        self._n_bytes, self._objective, self._split = n_bytes, objective, split

    def due(self, step: int, history: History) -> bool:
        """On schedule (step 0, too), where the decay ends, and at the last step."""
        return self.regular(step, history) or step == history.num_steps

    def regular(self, step: int, history: History) -> bool:
        """Whether this step would be evaluated whatever num_steps is."""
        return self.scheduled(step, history.decay_from)

    def scheduled(self, step: int, decay_from: int) -> bool:
        """The same, from the step at which the learning rate's decay begins."""
        return step % self._every == 0 or step == self._schedule.ends(decay_from)

    def run(self, step: int, state: TrainState, history: History) -> Action:
        """Writes the held-out loss, and keeps it as `history.evaluation`.

        A signal ends it without a loss: a resumed run evaluates this step again.
        """
        with history.untimed(), phases.doing("evaluate"):
            batches = _until_stopped(self._batches, history)
            totals = total_loss(
                self._eval_step, state.params, batches, in_flight=self._in_flight
            )
        if history.interrupted:
            return None
        scores = per_token_and_byte(totals, self._n_bytes, self._objective)
        self._write({"step": step, "split": self._split, **scores})
        loss = scores["nats_per_token"]
        if loss is not None and not math.isfinite(loss):
            cluster.print_once(
                f"Step {step}: the {self._split} loss is {loss}.", file=sys.stderr
            )
        values = (loss, scores.get("objective", loss))
        history.evaluation = Evaluation(
            step, *(math.nan if value is None else value for value in values)
        )


def require_watched(
    rule: StopRule, objective: Objective, scored: Collection[str]
) -> None:
    """Refuses a rule that would watch what an evaluation does not find.

    scored: the names of what `make_eval_step` returns.
    """
    kind, reads = type(objective).__name__, not isinstance(rule, Never)
    if reads and rule.watch == "nats_per_token" and "loss" not in scored:
        raise UserError(
            f"stop.watch=nats_per_token: {kind} has no cross-entropy of tokens; with "
            f"stop.watch=objective the rule watches the held-out mean of {kind}."
        )


def _until_stopped(batches: Iterable[Any], history: History) -> Iterator[Any]:
    """The batches, up to a signal, which ends the loop."""
    for batch in batches:
        if history.stop_now():
            break
        yield batch
    # The batches, too, end early where one never comes.
    history.interrupted |= history.stop_now()


class Decide:
    """Passes each evaluation to the stopping rule, and keeps the rule's memory.

    memory: {"rule": the rule's own, "stopped": the reason or None, "step": of the
    newest decision}; JSON, saved with the state. The evaluation of a run's last step,
    if it is off schedule, may be the best one, but takes no part in decisions, since a
    longer run would not have made it.
    """

    def __init__(
        self,
        rule: StopRule,
        evaluation: Evaluate,
        schedule: Schedule,
        memory: Memory | None = None,
    ):
        self._rule, self._evaluation, self._schedule = rule, evaluation, schedule
        self.memory = memory or {"rule": rule.start(), "stopped": None, "step": -1}

    def is_behind(self, step: int, decay_from: int) -> bool:
        """Whether a run that is resumed at this step has still to evaluate it."""
        return step > self.memory["step"] and self._evaluation.scheduled(
            step, decay_from
        )

    def due(self, step: int, history: History) -> bool:
        """Whether this step was evaluated, and has not been decided on."""
        if history.evaluation is None or history.evaluation.step != step:
            return False
        # A run resumed at step 0 evaluates it again, and must not count it twice.
        return step > self.memory["step"]

    def run(self, step: int, state: TrainState, history: History) -> Action:
        """What the stopping rule asks for."""
        if history.evaluation is None:
            return None
        rule_memory = self.memory["rule"]
        phase = phase_of(self._schedule, step, history.decay_from)
        evaluation = history.evaluation
        by_objective = self._rule.watch == "objective"
        value = evaluation.objective if by_objective else evaluation.loss
        verdict = self._rule.observe(rule_memory, step, value, phase)
        if verdict.is_best:
            history.best_at = step
        if not self._evaluation.regular(step, history):
            if verdict.is_best:
                rule_memory = {**rule_memory, "best": verdict.memory["best"]}
                self.memory = {**self.memory, "rule": rule_memory}
            return None
        action = verdict.action
        stopped = action.reason if isinstance(action, Stop) else None
        self.memory = {"rule": verdict.memory, "stopped": stopped, "step": step}
        return action
