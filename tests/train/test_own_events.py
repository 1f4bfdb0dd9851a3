"""Events of one's own take part in a run, between its decisions and its saves.

pytest tests/train/test_own_events.py
"""

import dataclasses

import jax
import pytest

from experiments import own_event
from jaxpar import pretrain, read_metrics
from jaxpar.errors import UserError
from jaxpar.guard import phases
from jaxpar.models import sizes
from jaxpar.partition.layout import Layout
from jaxpar.run.directory import RunDir
from jaxpar.run.own_events import Running, make_events, require_events
from jaxpar.train.actions import Stop
from jaxpar.train.loop import History
from tests.metrics.test_sinks import events as tensorboard_of
from tests.outside.own_event import StopBelow


class Due:
    """A part of an event."""

    def due(self, step, history):
        return True


class Short(Due):
    """One that does not get the state."""

    def run(self, step, history):
        return None


class Noted(Due):
    """One that notes how it was run, and returns what it is given."""

    def __init__(self, running=None, action=None):
        self.action, self.seen = action, running

    def run(self, step, state, history):
        self.seen = phases.PROCESS.present(), history._paused_at is not None
        return self.action


@pytest.mark.parametrize(
    ("events", "words"),
    [
        (
            [Due()],
            r"An event has due and run; Due has no method run\(step, state, hist",
        ),
        ([3], r"int has no method due\(step, history"),
        ([Short()], r"Short must have run\(step, state, history\): too many"),
        (StopBelow(1.0), "events is a StopBelow; it must be a list"),
        ("sample", "events is a str; it must be a list"),
        ([Due], r"Due is called with the run, .*: too many .*\. Write Due\(running\)"),
        (lambda: [], "<lambda> is called with the run, .*: too many positional"),
    ],
    ids=[
        "no run",
        "a number",
        "other arguments",
        "no list",
        "a text",
        "a class that takes no run",
        "a function that takes no run",
    ],
)
def test_what_is_no_event_is_refused_before_anything_is_read(events, words, tmp_path):
    with pytest.raises(UserError, match=words):
        pretrain.main(own_event.experiment, run_dir=tmp_path / "run", events=events)
    assert not (tmp_path / "run").exists()


def running_with(rows):
    return Running(own_event.experiment, None, None, rows.append)


@pytest.mark.parametrize(
    "events", [[Noted], lambda running: [Noted(running)], [lambda run: Noted(run)]]
)
def test_an_event_may_be_made_of_the_run(events):
    running = running_with([])
    require_events(events)
    (event,) = make_events(events, running)
    assert event._event.seen is running


def test_what_a_function_makes_is_checked_too():
    with pytest.raises(UserError, match="Due has no method run"):
        make_events(lambda running: [Due()], running_with([]))
    with pytest.raises(UserError, match="NoneType has no method due"):
        make_events([lambda running: None], running_with([]))
    with pytest.raises(UserError, match="events is a type; it must be a list"):
        make_events(lambda running: Noted, running_with([]))


def test_an_event_runs_untimed_and_is_no_computing():
    noted = Noted()
    (event,) = make_events([noted], running_with([]))
    assert event.run(1, None, History()) is None
    assert noted.seen == ("evaluate", True)


def test_an_action_that_is_none_is_refused():
    (event,) = make_events([Noted(action=True)], running_with([]))
    with pytest.raises(UserError, match=r"Noted.run returned True; it must be None, S"):
        event.run(1, None, History())


def test_the_names_of_the_runs_own_rows_are_taken():
    rows = []
    running_with(rows).write(3, "sample", text="x")
    assert rows == [{"step": 3, "split": "sample", "text": "x"}]
    with pytest.raises(UserError, match="'heldout' is a name of the run's own rows"):
        running_with(rows).write(3, "heldout", text="x")


TINY = dataclasses.replace(
    own_event.experiment,
    model=sizes.llama(
        vocab_size=259, n_layers=1, d_embed=16, n_heads=2, n_kv_heads=2, d_mlp=16,
        max_positions=128,
    ),
    data=dataclasses.replace(
        own_event.experiment.data, source="synthetic", seq_len=32, batch_size=8
    ),
    layout=Layout.parse("fsdp=4,tensor=2"),
    num_steps=3, eval_every=50, save_every=50, log_every=50,
)  # fmt: skip


class Often(own_event.Sample):
    """The worked example, every two steps."""

    every = 2


class StopAt(Due):
    """Stops at a step."""

    def run(self, step, state, history):
        return Stop("seen enough") if step == 5 else None


def test_the_worked_example_samples_text_on_a_mesh_and_after_a_resume(tmp_path, capsys):
    run, path = tmp_path / "run", tmp_path / "run" / "metrics.jsonl"
    assert pretrain.main(TINY, run_dir=run, events=[Often]) == 0
    longer = dataclasses.replace(TINY, num_steps=6)
    # StopBelow fetches every two steps; no row of a step is lost for it.
    events = [Often, StopBelow(0.0), StopAt()]
    assert pretrain.main(longer, run_dir=run, events=events) == 0
    rows = read_metrics(path)
    samples = [row for row in rows if row.get("split") == "sample"]
    assert [row["step"] for row in samples] == [0, 2, 4]
    assert all(row["text"].startswith("def ") for row in samples)
    assert [row["step"] for row in rows if "split" not in row] == [1, 2, 3, 4, 5]
    assert "at step 5: seen enough" in capsys.readouterr().out
    shown = tensorboard_of(run / "tensorboard")
    tags = [tag for _, tag, _ in shown if tag.startswith("sample")]
    assert tags == ["sample/text/text_summary"] * 3
    # What was stopped is saved.
    assert RunDir(run).choose_step("newest") == 5


def test_several_processes_are_told_that_the_example_is_for_one(monkeypatch):
    monkeypatch.setattr(own_event.cluster, "count", lambda: 2)
    with pytest.raises(UserError, match="in one process"):
        make_events(own_event.events, running_with([]))


def test_the_example_is_read_with_its_events():
    require_events(own_event.events)
    assert own_event.events == [own_event.Sample] and jax.devices()
