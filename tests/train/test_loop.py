"""Events run in their order, and nothing is fetched from the device between them.

pytest tests/train/test_loop.py
"""

import dataclasses
import itertools
import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.errors import Diverged
from jaxpar.optim.schedule import Schedule
from jaxpar.train import loop
from jaxpar.train.actions import StartDecay, Stop
from jaxpar.train.converge import StopRule, Verdict
from jaxpar.train.events import Decide, Evaluate, Log
from jaxpar.train.loop import History, fit
from jaxpar.train.state import NEVER, TrainState


class Unfetched:
    """A metric that may be read only while an event runs."""

    open = False

    def __init__(self, value):
        self.value = value

    def __array__(self, dtype=None, copy=None):
        assert Unfetched.open, "a number was read between events"
        return np.asarray(self.value, dtype)

    def __float__(self):
        return float(self.__array__())

    __int__ = __bool__ = __index__ = __float__


def new_state(step=0):
    return TrainState(jnp.int32(step), {}, (), jnp.int32(NEVER))


def step_of(state, batch):
    metrics = {"loss": Unfetched(float(batch)), "tokens": Unfetched(8.0)}
    return dataclasses.replace(state, step=state.step + 1), metrics


class Recorder:
    """An event that records when it runs, and returns the actions that it is given."""

    def __init__(self, name, seen, *, every=1, actions=None, fetches=False):
        self.name, self.seen, self.every = name, seen, every
        self.actions, self.fetches = actions or {}, fetches

    def due(self, step, history):
        return step % self.every == 0

    def run(self, step, state, history):
        decay_from = int(state.decay_from)
        self.seen.append((step, self.name, decay_from, history.stop))
        if self.fetches:
            Unfetched.open = True
            history.fetch()
            Unfetched.open = False
        return self.actions.get(step)


def run(events, *, num_steps=6, state=None, history=None, step=step_of):
    return fit(
        state or new_state(),
        itertools.count(),
        step,
        num_steps=num_steps,
        events=events,
        history=history,
    )


def test_events_run_in_their_order_and_at_step_0_too():
    seen = []
    names = ("log", "evaluate", "decide", "save")
    run([Recorder(name, seen) for name in names], num_steps=2)
    want = [(step, name) for step in range(3) for name in names]
    assert [entry[:2] for entry in seen] == want


def test_an_action_is_applied_before_the_next_event_runs():
    seen = []
    decide = Recorder("decide", seen, actions={2: StartDecay(), 4: Stop("enough")})
    state, history = run([decide, Recorder("save", seen)])
    then = {(step, name): rest for step, name, *rest in seen}
    assert then[2, "decide"] == [NEVER, None]
    assert then[2, "save"] == [2, None]
    assert then[4, "save"] == [2, Stop("enough")]
    assert int(state.step) == 4 and history.stop == Stop("enough")


def test_the_decay_begins_once():
    actions = {2: StartDecay(), 3: StartDecay()}
    state, _ = run([Recorder("decide", [], actions=actions)])
    assert int(state.decay_from) == 2


def test_a_resumed_run_runs_no_event_before_its_first_step():
    seen = []
    run([Recorder("log", seen)], state=new_state(4))
    assert [step for step, *_ in seen] == [5, 6]


def test_nothing_is_fetched_between_events():
    _, history = run([Recorder("log", [], every=3, fetches=True)], num_steps=7)
    assert [row["step"] for row in history.rows] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in history.rows] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(AssertionError, match="between events"):
        history.fetch()


def test_seconds_are_the_time_since_the_last_fetch_divided_by_its_steps():
    _, history = run([Recorder("log", [], every=3, fetches=True)])
    first, second = history.rows[:3], history.rows[3:]
    assert len({row["seconds"] for row in first}) == 1
    assert len({row["seconds"] for row in second}) == 1
    assert all(row["seconds"] >= 0 for row in history.rows)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_loop_between_steps_with_the_newest_state(number):
    handler = signal.getsignal(number)

    def interrupted(state, batch):
        if batch == 2:
            os.kill(os.getpid(), number)
        return step_of(state, batch)

    seen = []
    state, history = run([Recorder("save", seen)], step=interrupted)
    assert int(state.step) == 3 and seen[-1][0] == 3
    assert history.interrupted and history.signal == signal.Signals(number).name
    assert history.stop is None and signal.getsignal(number) == handler
    state, history = run([], state=state, history=history)
    assert int(state.step) == 6 and not history.interrupted


def test_a_second_signal_acts_at_once():
    def twice(state, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        return step_of(state, batch)

    # A shell starts background jobs with SIGINT ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run([], step=twice)
    finally:
        signal.signal(signal.SIGINT, handler)


def test_other_threads_leave_signals_as_they_are():
    results = []
    thread = threading.Thread(target=lambda: results.append(run([])))
    thread.start()
    thread.join()
    assert int(results[0][0].step) == 6


# The events that come with the loop, on a model whose loss is known.


@dataclasses.dataclass(frozen=True)
class Scripted(StopRule):
    """A rule that returns a fixed action at each step."""

    actions: dict

    def start(self):
        return {"seen": [], "best": None}

    def observe(self, memory, step, loss, phase):
        memory = {**memory, "seen": [*memory["seen"], [step, phase]], "best": step}
        return Verdict(memory, self.actions.get(step), step == 5)


def loop_events(lines, *, rule=None, every=2, memory=None, log_every=100):
    # A constant rate, whose decay takes two steps once the rule has begun it.
    schedule = Schedule(1.0, 0, -1, 2, 0.0, "linear")
    evaluation = Evaluate(
        lambda params, batch: {"loss": jnp.float32(batch), "weight": jnp.float32(2)},
        [1.0, 3.0],
        lines.append,
        every=every,
        schedule=schedule,
        n_bytes=8,
    )
    decide = Decide(rule or Scripted({}), evaluation, schedule, memory)
    log = Log(lines.append, every=log_every, flush_before=(evaluation,))
    return log, evaluation, decide


def plain_step(state, batch):
    metrics = {"loss": jnp.float32(batch), "tokens": jnp.float32(8)}
    return dataclasses.replace(state, step=state.step + 1), metrics


def test_the_held_out_set_is_scored_at_step_0_on_schedule_and_last():
    lines = []
    run(loop_events(lines), num_steps=5, step=plain_step)
    scored = [line for line in lines if "split" in line]
    assert [line["step"] for line in scored] == [0, 2, 4, 5]
    assert scored[0] == {
        "step": 0, "split": "heldout", "nats_per_token": 1.0, "nats_per_byte": 0.5,
    }  # fmt: skip
    assert json.loads(json.dumps(lines)) == lines


def test_steps_are_written_before_their_evaluation():
    lines = []
    run(loop_events(lines, every=3), num_steps=4, step=plain_step)
    order = [(line["step"], "split" in line) for line in lines]
    assert order == [
        (0, True), (1, False), (2, False), (3, False), (3, True), (4, False), (4, True),
    ]  # fmt: skip


def test_an_evaluation_off_schedule_takes_no_part_in_decisions():
    events = loop_events([], rule=Scripted({5: Stop("no")}))
    _, history = run(events, num_steps=5, step=plain_step)
    rule = events[2].memory["rule"]
    assert [step for step, _ in rule["seen"]] == [0, 2, 4]
    assert rule["best"] == 5 and history.best_at == 5 and history.stop is None


def test_the_end_of_a_decay_is_evaluated_and_decided_on_whatever_the_interval():
    events = loop_events([], rule=Scripted({4: StartDecay(), 6: Stop("over")}), every=4)
    state, history = run(events, num_steps=20, step=plain_step)
    assert int(state.step) == 6 and history.stop == Stop("over")
    assert events[2].memory["stopped"] == "over"
    phases = events[2].memory["rule"]["seen"]
    assert phases == [[0, "plateau"], [4, "plateau"], [6, "zero"]]


def test_a_loss_that_is_not_finite_ends_the_run():
    def broken(state, batch):
        state, metrics = plain_step(state, batch)
        return state, {**metrics, "loss": jnp.float32(jnp.nan)}

    with pytest.raises(Diverged, match="step 1 is nan"):
        run(loop_events([]), step=broken)


def test_history_fetches_each_step_once_from_any_device():
    history = History()
    history.keep(1, {"loss": jax.device_put(2.0, jax.devices()[-1])})
    (row,) = history.fetch()
    assert row["loss"] == 2.0 and history.fetch() == []


# Seconds, by a clock that only the test moves.


class Clock:
    """Seconds that pass where the test says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(loop.time, "perf_counter", lambda: self.now)

    def step(self, state, batch):
        """The first step takes a minute, which compiles; each other one a second."""
        self.now += 60 if batch == 0 else 1
        return plain_step(state, batch)


class Waiting:
    """An event that takes its time, untimed, and may fetch, or hold another one."""

    def __init__(self, clock, *, every=2, fetches=False):
        self.clock, self.every, self.fetches = clock, every, fetches

    def due(self, step, history):
        return step % self.every == 0

    def run(self, step, state, history):
        with history.untimed():
            self.clock.now += 100
            if self.fetches:
                history.fetch()
            with history.untimed():
                self.clock.now += 100


@pytest.mark.parametrize("log_every", [1, 3, 4])
@pytest.mark.parametrize("fetches", [False, True])
def test_only_steps_after_the_first_have_seconds(monkeypatch, log_every, fetches):
    clock = Clock(monkeypatch)
    log = Log([].append, every=log_every)
    events = [Waiting(clock, fetches=fetches), log]
    _, history = run(events, num_steps=9, step=clock.step)
    seconds = [row["seconds"] for row in history.rows]
    assert seconds == [None if log_every == 1 else 1.0] + [1.0] * 8


def test_a_history_of_several_fits_counts_no_time_between_them(monkeypatch):
    clock = Clock(monkeypatch)
    state, history = run([], num_steps=2, step=clock.step)
    clock.now += 1000
    _, history = run([], num_steps=5, state=state, history=history, step=clock.step)
    assert [row["seconds"] for row in history.fetch()] == [1.0] * 5
