"""Which losses are spikes, and what follows from one.

pytest tests/train/test_spikes.py
"""

import json
import math
import random

import jax.numpy as jnp
import pytest

from jaxpar.config import fingerprint, from_json, to_json
from jaxpar.errors import Diverged, UserError
from jaxpar.experiment import CLASSES
from jaxpar.train.events import Log
from jaxpar.train.loop import History
from jaxpar.train.spikes import GoBack, Rewind, Spikes, Warn, in_turn, pairs
from jaxpar.train.state import NEVER, TrainState

EMPTY = TrainState(jnp.int32(0), {}, (), jnp.int32(NEVER))
WARN = Warn(window=8)
REWIND = Rewind(window=8, steps=6)


def windows_of(step):
    return [100 * step + i for i in (2, 0, 1)]


def noisy(n, *, at=2.5, spread=0.05, seed=0):
    source = random.Random(seed)
    return [source.gauss(at, spread) for _ in range(n)]


def rows_of(losses, **others):
    return [
        {"step": i, "loss": loss, "tokens": 8.0, "skipped": 0.0, **others}
        for i, loss in enumerate(losses, 1)
    ]


def judged(losses, policy=WARN, **kinds):
    spikes = Spikes(policy, windows_of=windows_of, **kinds)
    return [spikes.judge(row) for row in rows_of(losses)], spikes


def flagged(losses, policy=WARN):
    return [row["step"] for row, _ in judged(losses, policy)[0] if row.get("spike")]


def test_a_spike_is_flagged_with_its_windows_and_said_once(capsys):
    results, _ = judged([*noisy(20), 9.0, 8.5, *noisy(5)])
    assert [row["step"] for row, _ in results if "spike" in row] == [21, 22]
    row, error = results[20]
    assert row["spike"] is True and row["windows"] == [2102, 2100, 2101]
    assert error is None and "windows" not in results[0][0]
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "loss of step 21, 9 nats/token, is a spike: the median before it is 2." in line
    )
    assert line.endswith("its batch has the windows 2102, 2100, 2101.")


@pytest.mark.parametrize(
    ("losses", "policy"),
    [
        pytest.param(noisy(5_000), Warn(), id="noise"),
        pytest.param(noisy(5_000, spread=1.0), Warn(), id="loud noise"),
        pytest.param([2.0] * 20 + [2.2] * 20, WARN, id="below the smallest rise"),
        pytest.param([10 * 0.99**i for i in range(500)], Warn(), id="a falling loss"),
        pytest.param([2.5 + 0.002 * i for i in range(500)], Warn(), id="a slow rise"),
        pytest.param([*noisy(7), 50.0], WARN, id="too few losses before it"),
        pytest.param([2.5] * 20 + [math.nan, 2.5], WARN, id="not a number"),
    ],
)
def test_what_is_no_spike(losses, policy):
    assert flagged(losses, policy) == []


def test_a_loss_that_stays_high_is_no_spike_for_long():
    assert flagged([*noisy(20), *noisy(40, at=6.0)], WARN) == [21, 22, 23, 24]


def test_steps_that_scored_nothing_take_no_part():
    spikes = Spikes(WARN, windows_of=windows_of)
    left_out = rows_of([90.0], tokens=0.0) + rows_of([math.nan], skipped=1.0)
    for row in [*rows_of(noisy(8)), *left_out * 20]:
        assert spikes.judge(row) == (row, None)
    row, _ = spikes.judge(rows_of([9.0])[0])
    assert row["spike"]


@pytest.mark.parametrize("stopped_after", [0, 3, 12, 20, 21, 25])
def test_a_resumed_run_judges_as_one_that_never_stopped(stopped_after):
    rows = rows_of([*noisy(20), 9.0, *noisy(3), 7.0, *noisy(3)])
    straight = Spikes(WARN, windows_of=windows_of)
    expected = [straight.judge(row) for row in rows]
    first = Spikes(WARN, windows_of=windows_of)
    found = [first.judge(row) for row in rows[:stopped_after]]
    memory = json.loads(json.dumps(first.memory))
    second = Spikes(WARN, windows_of=windows_of, memory=memory)
    found += [second.judge(row) for row in rows[stopped_after:]]
    assert found == expected and second.memory == straight.memory


def test_a_rewind_names_where_to_and_the_windows_of_its_batches():
    _, error = judged([*noisy(20), 9.0], REWIND)[0][-1]
    assert isinstance(error, GoBack)
    assert error.skipping == {
        "from_step": 15,
        "spike": 21,
        "windows": [2100, 2101, 2102],
    }
    both = Rewind(window=8, steps=30, batches=2)
    _, error = judged([*noisy(20), 9.0], both)[0][-1]
    assert error.skipping["from_step"] == 0
    assert error.skipping["windows"] == [2000, 2001, 2002, 2100, 2101, 2102]


def test_the_loop_ends_at_the_spike_and_its_row_is_written():
    history, written = History(), []
    for row in rows_of([*noisy(20), 9.0, 2.5]):
        history.keep(row.pop("step"), row)
    spikes = Spikes(REWIND, windows_of=windows_of)
    log = Log(written.append, every=1, judge=in_turn(lambda r: (r, None), spikes.judge))
    with pytest.raises(GoBack):
        log.run(22, EMPTY, history)
    assert written[-1]["step"] == 21 and written[-1]["spike"]


def test_the_spike_after_the_last_rewind_ends_the_run():
    skipped = [{"from_step": 1, "spike": 2, "windows": [5]}] * REWIND.max_rewinds
    _, error = judged([*noisy(20), 9.0], REWIND, skipped=skipped[1:])[0][-1]
    assert isinstance(error, GoBack)
    _, error = judged([*noisy(20), 9.0], REWIND, skipped=skipped)[0][-1]
    assert isinstance(error, Diverged) and "gone back 10 times" in str(error)


def test_judges_take_turns_up_to_the_first_error():
    error = Diverged("no")
    judge = in_turn(lambda r: ({**r, "a": 1}, None), lambda r: ({**r, "b": 2}, error))
    after = in_turn(judge, lambda r: pytest.fail("not reached"))
    assert after({"step": 1}) == ({"step": 1, "a": 1, "b": 2}, error)


def test_a_rewind_to_before_an_earlier_one_takes_its_windows_along():
    def skipping(from_step, *windows):
        return {"from_step": from_step, "spike": 99, "windows": list(windows)}

    assert pairs([]) == []
    assert pairs([skipping(5, 2, 1), skipping(8, 7)]) == [(5, 1), (5, 2), (8, 7)]
    assert pairs([skipping(8, 7), skipping(5, 2)]) == [(5, 2), (5, 7)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Warn(factor=0.0),
        lambda: Warn(factor=math.nan),
        lambda: Warn(min_rise=-1.0),
        lambda: Warn(window=3),
        lambda: Rewind(steps=0),
        lambda: Rewind(max_rewinds=0),
        lambda: Rewind(steps=3, batches=4),
    ],
)
def test_what_makes_no_sense_is_refused(make):
    with pytest.raises(UserError):
        make()


@pytest.mark.parametrize("policy", [WARN, REWIND, Rewind(max_rewinds=1)])
def test_a_policy_is_written_and_read_as_json(policy):
    assert from_json(json.loads(json.dumps(to_json(policy))), CLASSES) == policy


def test_only_what_changes_numbers_is_in_the_fingerprint():
    assert fingerprint(Warn()) == fingerprint(Warn(factor=9.0, window=32, min_rise=1.0))
    assert fingerprint(Rewind()) == fingerprint(Rewind(max_rewinds=2))
    others = {"factor": 9.0, "window": 32, "min_rise": 1.0, "steps": 50, "batches": 2}
    found = {fingerprint(Rewind(**{name: value})) for name, value in others.items()}
    assert len(found | {fingerprint(Rewind())}) == 6
