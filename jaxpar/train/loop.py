"""The training loop: steps, with events between them."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

from jaxpar.errors import UserError
from jaxpar.guard import phases
from jaxpar.guard.shared_stop import SharedStop
from jaxpar.guard.stopping import StopRequest, Unsaved, for_loop
from jaxpar.metrics.sinks import Row
from jaxpar.partition import cluster
from jaxpar.train.actions import Action, StartDecay, Stop
from jaxpar.train.state import NEVER, TrainState

AnyBatch = TypeVar("AnyBatch")


class Evaluation(NamedTuple):
    """An evaluation of the held-out set."""

    step: int
    loss: float
    """Nats per token; NaN where no token is scored."""
    objective: float = math.nan
    """Mean of the objective, the same for CausalLM; NaN where nothing is scored."""


class History:
    """What happened so far; metrics stay on the device until they are fetched.

    rows: the fetched metrics of every step. stop: the Stop that an event asked for.
    num_steps, decay_from: on the host, kept up to date by `fit` for the events.
    interrupted, signal: whether a signal ended the loop, and which. stop_now: whether
    an event that takes long should end now, because of a signal; all processes must ask
    equally often. evaluation: the newest one. best_at: the step of the best one.
    """

    def __init__(self):
        self.rows: list[Row] = []
        self.stop: Stop | None = None
        self.num_steps = 0
        self.decay_from = NEVER
        self.interrupted = False
        self.signal = ""
        self.stop_now: Callable[[], bool] = lambda: False
        self.evaluation: Evaluation | None = None
        self.best_at: int | None = None
        self._pending: list[tuple[int, dict[str, Any]]] = []
        # The clock stands still from `_paused_at` on; `_untimed` is how long it has.
        self._paused_at: float | None = None
        self._untimed, self._since, self._n_untimed = 0.0, 0.0, 0
        self.start_clock()

    def keep(self, step: int, metrics: dict[str, Any]) -> None:
        """Adds a step's metrics without fetching them."""
        self._pending.append((step, metrics))

    def fetch(self) -> list[Row]:
        """The steps since the last fetch, as Python numbers: waits for the device.

        `seconds` of a step is the time since the last fetch divided by its steps. The
        first step of a session, which compiles, counts neither as time nor as a step:
        its row has the seconds of those fetched with it, None where there are none.
        """
        if not self._pending:
            return []
        steps, metrics = zip(*self._pending, strict=True)
        # A read of one that was refused its memory would wait for ever.
        values = jax.device_get(jax.block_until_ready(list(metrics)))
        phases.made_progress()
        n_timed = len(steps) - self._n_untimed
        seconds = (self._clock() - self._since) / n_timed if n_timed else None
        self._pending = []
        self.start_clock()
        rows = [
            {
                "step": step,
                **{k: np.asarray(v).astype(float).tolist() for k, v in value.items()},
                "seconds": seconds,
            }
            for step, value in zip(steps, values, strict=True)
        ]
        self.rows += rows
        return rows

    def start_clock(self) -> None:
        """Counts seconds from now, of the steps that are not yet kept."""
        self._since, self._n_untimed = self._clock(), len(self._pending)

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """A block whose time is not counted as that of any step; it may hold others."""
        if self._paused_at is not None:
            yield
            return
        if self._pending:
            jax.block_until_ready(self._pending[-1][1])
        self._paused_at = time.perf_counter()
        try:
            yield
        finally:
            self._untimed += time.perf_counter() - self._paused_at
            self._paused_at = None

    def _clock(self) -> float:
        """Seconds that the clock has run; it stands still in an untimed block."""
        now = self._paused_at
        return (time.perf_counter() if now is None else now) - self._untimed


@runtime_checkable
class Event(Protocol):
    """Something that happens between steps; only `run` may fetch from the device."""

    def due(self, step: int, history: History) -> bool:
        """Whether to run after this step; step 0 is before the first one."""
        ...

    def run(self, step: int, state: TrainState, history: History) -> Action:
        """Does its work, and returns what the loop should do."""
        ...


def fit(
    state: TrainState,
    batches: Iterable[AnyBatch],
    train_step: Callable[[TrainState, AnyBatch], tuple[TrainState, dict[str, Any]]],
    *,
    num_steps: int,
    events: Sequence[Event] = (),
    first: Sequence[Event] = (),
    history: History | None = None,
) -> tuple[TrainState, History]:
    """Trains until num_steps, a Stop or a signal; returns the newest state.

    Events run in their order after each step, and before the first one at step 0. The
    order matters: log, evaluate, decide, save. first: what runs instead before the
    first step of a resumed run, such as an evaluation that a signal ended.

    SIGINT and SIGTERM end the loop between two steps, or while it awaits a batch
    (`history.interrupted`); a second signal does what it did before `fit`, unless a
    command handles signals (jaxpar.guard.stopping). Of several processes it is enough
    if one gets the signal: all end at the same step.
    """
    history = history or History()
    step, history.decay_from = map(int, jax.device_get((state.step, state.decay_from)))
    history.num_steps = num_steps
    history.interrupted, history.signal = False, ""
    batches = iter(batches)
    with _stoppable() as request:
        history.stop_now = request.reached
        history.interrupted = request.reached()
        if not history.interrupted and (step == 0 or first):
            state = _run_events(events if step == 0 else first, step, state, history)
        history.start_clock()
        phase: phases.Phase = "compile"
        while step < num_steps and not (history.stop or history.interrupted):
            with phases.doing("data"):
                batch = next(batches, None)
            if batch is None:
                _require_stop(request, step, num_steps)
                history.interrupted = True
                break
            with phases.doing(phase):
                state, metrics = train_step(state, batch)
                step += 1
                history.keep(step, metrics)
                if phase == "compile":
                    jax.block_until_ready(metrics)
                    history.start_clock()
                request.unsaved, phase = Unsaved.STEPS, "compute"
                state = _run_events(events, step, state, history)
            history.interrupted |= request.reached()
        history.signal = request.signal if history.interrupted else ""
    return state, history


def apply_action(
    action: Action, step: int, state: TrainState, history: History
) -> TrainState:
    """Does what an event asked for; the only place where `decay_from` is set."""
    if isinstance(action, Stop):
        history.stop = action
    if isinstance(action, StartDecay) and history.decay_from == NEVER:
        history.decay_from = step
        decay_from = jax.device_put(np.int32(step), state.decay_from.sharding)
        return dataclasses.replace(state, decay_from=decay_from)
    return state


def _run_events(
    events: Sequence[Event], step: int, state: TrainState, history: History
) -> TrainState:
    for event in events:
        if event.due(step, history):
            action = event.run(step, state, history)
            state = apply_action(action, step, state, history)
    return state


@contextlib.contextmanager
def _stoppable() -> Iterator[StopRequest]:
    """The request to stop, which all processes share, while the loop runs."""
    with for_loop() as request:
        if cluster.count() == 1 or request.agreement:
            yield request
            return
        shared = SharedStop(request)
        shared.start()
        try:
            yield request
        finally:
            shared.close()


def _require_stop(request: StopRequest, step: int, num_steps: int) -> None:
    """Refuses batches that end before the run does, unless it was asked to stop."""
    if not request.asked():
        raise UserError(
            f"The batches ended after step {step}; num_steps={num_steps} needs more."
        )
