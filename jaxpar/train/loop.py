"""The training loop: steps, with events between them."""

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jaxpar.partition import cluster
from jaxpar.train.actions import Action, StartDecay, Stop
from jaxpar.train.state import NEVER, TrainState


class History:
    """What happened so far; metrics stay on the device until they are fetched.

    rows: every step's metrics fetched so far. stop: the granted stop, if any.
    num_steps, decay_from: host copies that `fit` keeps for the events.
    evaluation: the newest evaluation's step and loss (nats per token).
    """

    def __init__(self):
        self.rows: list[dict[str, float]] = []
        self.stop: Stop | None = None
        self.num_steps = 0
        self.decay_from = NEVER
        self.interrupted = False
        self.signal = ""
        self.evaluation: tuple[int, float] | None = None
        self.best_at: int | None = None
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._since = time.perf_counter()

    def keep(self, step: int, metrics: dict[str, Any]) -> None:
        """Remembers a step's metrics where they are."""
        self._pending.append((step, metrics))

    def fetch(self) -> list[dict[str, float]]:
        """The steps since the last fetch as numbers: a host synchronisation.

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
    def aside(self) -> Iterator[None]:
        """Time spent here belongs to no step."""
        if self._pending:
            jax.block_until_ready(self._pending[-1][1])
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began


class Event(Protocol):
    """Something between steps; only a due event may look at numbers."""

    def due(self, step: int, history: History) -> bool: ...

    def run(self, step: int, state: TrainState, history: History) -> Action: ...


def fit(
    state: TrainState,
    batches: Iterable[Any],
    train_step: Callable[[TrainState, Any], tuple[TrainState, dict[str, Any]]],
    *,
    num_steps: int,
    events: Sequence[Event] = (),
    history: History | None = None,
) -> tuple[TrainState, History]:
    """Steps until num_steps, a granted Stop or a signal; returns the live state.

    Events run in their order after each step, which is law: log, evaluate, decide,
    save; at step 0, too, before any step. SIGINT and SIGTERM end it between two steps
    (`history.interrupted`); a second one does what it did before `fit`. Of several
    processes one that gets a signal is enough: all end at the same step.
    """
    history = history or History()
    step, history.decay_from = map(int, jax.device_get((state.step, state.decay_from)))
    history.num_steps = num_steps
    history.interrupted, history.signal = False, ""
    batches = iter(batches)
    many = cluster.count() > 1
    with _shared_signals(history, step) if many else _signals(history):
        if step == 0:
            state = _happen(events, step, state, history)
        history.start_clock()
        while step < num_steps and not (history.stop or history.interrupted):
            state, metrics = train_step(state, next(batches))
            step += 1
            history.keep(step, metrics)
            state = _happen(events, step, state, history)
            if many and cluster.stop_requested(step):
                history.interrupted = True
    return state, history


def apply_action(
    wish: Action, step: int, state: TrainState, history: History
) -> TrainState:
    """The state once a wish is granted; nobody else sets `decay_from`."""
    if isinstance(wish, Stop):
        history.stop = wish
    if isinstance(wish, StartDecay) and history.decay_from == NEVER:
        history.decay_from = step
        here = jax.device_put(np.int32(step), state.decay_from.sharding)
        return dataclasses.replace(state, decay_from=here)
    return state


def _happen(events, step: int, state: TrainState, history: History) -> TrainState:
    for event in events:
        if event.due(step, history):
            wish = event.run(step, state, history)
            state = apply_action(wish, step, state, history)
    return state


@contextlib.contextmanager
def _shared_signals(history: History, step: int) -> Iterator[None]:
    """Makes SIGTERM and SIGINT a wish of all processes; JAX passes SIGTERM on."""
    history.signal = signal.SIGTERM.name
    cluster.share_signals(step)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT) or signal.SIG_DFL

    def pass_on(number, frame):
        signal.signal(signal.SIGINT, before)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _signals(history: History) -> Iterator[None]:
    """Lets SIGINT and SIGTERM set a flag; only a main thread can ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    # None stands for a handler that was not set from Python; it cannot be put back.
    before = {kind: signal.getsignal(kind) or signal.SIG_DFL for kind in kinds}

    def restore():
        for kind, handler in before.items():
            signal.signal(kind, handler)

    def note(number, frame):
        history.interrupted, history.signal = True, signal.Signals(number).name
        restore()

    for kind in kinds:
        signal.signal(kind, note)
    try:
        yield
    finally:
        restore()
