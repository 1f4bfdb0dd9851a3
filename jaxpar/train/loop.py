"""The training loop: steps, with events between them."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np

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


class History:
    """What happened so far; metrics stay on the device until they are fetched.

    rows: the fetched metrics of every step. stop: the Stop that an event asked for.
    num_steps, decay_from: on the host, kept up to date by `fit` for the events.
    interrupted, signal: whether a signal ended the loop, and which. evaluation: the
    newest one. best_at: the step of the best one.
    """

    def __init__(self):
        self.rows: list[Row] = []
        self.stop: Stop | None = None
        self.num_steps = 0
        self.decay_from = NEVER
        self.interrupted = False
        self.signal = ""
        self.evaluation: Evaluation | None = None
        self.best_at: int | None = None
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._since = time.perf_counter()

    def keep(self, step: int, metrics: dict[str, Any]) -> None:
        """Adds a step's metrics without fetching them."""
        self._pending.append((step, metrics))

    def fetch(self) -> list[Row]:
        """The steps since the last fetch, as Python numbers: waits for the device.

        `seconds` of a step is the time since the last fetch divided by its steps.
        """
        if not self._pending:
            return []
        steps, metrics = zip(*self._pending, strict=True)
        values = jax.device_get(list(metrics))
        now = time.perf_counter()
        seconds = (now - self._since) / len(steps)
        self._pending, self._since = [], now
        rows = [
            {
                "step": step,
                **{k: float(v) for k, v in value.items()},
                "seconds": seconds,
            }
            for step, value in zip(steps, values, strict=True)
        ]
        self.rows += rows
        return rows

    def start_clock(self) -> None:
        """Counts the seconds of the next steps from now."""
        self._since = time.perf_counter()

    @contextlib.contextmanager
    def untimed(self) -> Iterator[None]:
        """A block whose time is not counted as that of any step."""
        if self._pending:
            jax.block_until_ready(self._pending[-1][1])
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began


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
    history: History | None = None,
) -> tuple[TrainState, History]:
    """Trains until num_steps, a Stop or a signal; returns the newest state.

    Events run in their order after each step, and before the first one at step 0. The
    order matters: log, evaluate, decide, save. SIGINT and SIGTERM end the loop between
    two steps (`history.interrupted`); a second signal does what it did before `fit`. Of
    several processes it is enough if one gets the signal: all end at the same step.
    """
    history = history or History()
    step, history.decay_from = map(int, jax.device_get((state.step, state.decay_from)))
    history.num_steps = num_steps
    history.interrupted, history.signal = False, ""
    batches = iter(batches)
    many = cluster.count() > 1
    with _stop_all_on_signal(history, step) if many else _stop_on_signal(history):
        if step == 0:
            state = _run_events(events, step, state, history)
        history.start_clock()
        while step < num_steps and not (history.stop or history.interrupted):
            state, metrics = train_step(state, next(batches))
            step += 1
            history.keep(step, metrics)
            state = _run_events(events, step, state, history)
            if many and cluster.stop_requested(step):
                history.interrupted = True
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
def _stop_all_on_signal(history: History, step: int) -> Iterator[None]:
    """Lets a signal to one process stop them all, at the same step.

    JAX's coordination service tells all processes of a SIGTERM; SIGINT becomes one.
    """
    history.signal = signal.SIGTERM.name
    cluster.share_signals(step)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT) or signal.SIG_DFL

    def terminate(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, handler)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _stop_on_signal(history: History) -> Iterator[None]:
    """Lets SIGINT and SIGTERM set `interrupted`; Python allows it in the main thread.

    In any other thread signals do what they did before.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # None stands for a handler that was not set from Python; it cannot be put back.
    handlers = {
        number: signal.getsignal(number) or signal.SIG_DFL
        for number in (signal.SIGINT, signal.SIGTERM)
    }

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def interrupt(number: int, frame: FrameType | None) -> None:
        history.interrupted, history.signal = True, signal.Signals(number).name
        restore()

    for number in handlers:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        restore()
