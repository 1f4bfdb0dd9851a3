"""A save that fails stops the run or is tried again; a best step is marked later.

pytest tests/run/test_saving.py
"""

import contextlib
import dataclasses
import errno
from pathlib import Path

import pytest

from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.errors import SaveFailed, UserError
from jaxpar.experiment import Experiment
from jaxpar.run.directory import RunDir
from jaxpar.run.saving import Save
from jaxpar.train.actions import Stop
from jaxpar.train.loop import History
from tests.checkpoint.test_full_disk import begin_and_fail, big
from tests.run.test_resumed_metrics import RUN
from tests.small_disks import FAILED_SAVES

pytestmark = FAILED_SAVES
UNWRITABLE = Path("/sys/jaxpar")
"""Where not even root can make a file, on Linux."""


class Deciding:
    """Stands for the event that passes evaluations to the stopping rule."""

    memory = {"n": 0}


@contextlib.contextmanager
def saving(directory, **options):
    with contextlib.closing(Checkpoints(directory, keep=9)) as checkpoints:
        yield checkpoints, Save(checkpoints, Deciding(), every=2, **options)


def history_of(num_steps=8, best_at=None):
    history = History()
    history.num_steps, history.best_at = num_steps, best_at
    return history


def step_by_step(save, checkpoints, history, *, full=(), first=1):
    """Runs the event after each step; the disk is full at some of them."""
    for step in range(first, history.num_steps + 1):
        if not save.due(step, history):
            continue
        if step in full:
            real, checkpoints.save = checkpoints.save, failing(checkpoints)
            save.run(step, big(step), history)
            checkpoints.save = real
        else:
            save.run(step, big(step), history)


def failing(checkpoints):
    def save(step, state, *, memory, best):
        del checkpoints.save
        begin_and_fail(checkpoints, step, state)

    return save


def test_a_failed_save_stops_the_run_at_the_next_step(tmp_path):
    history = history_of()
    with saving(tmp_path) as (checkpoints, save):
        step_by_step(save, checkpoints, history_of(2))
        history.num_steps = 4
        step_by_step(save, checkpoints, history, full=(4,), first=3)
        assert save.due(5, history) and not 5 % 2 == 0
        with pytest.raises(SaveFailed, match="step 4 .* goes on from step 2"):
            save.run(5, big(5), history)
        assert checkpoints.steps() == [2]


def test_a_run_that_goes_on_says_so_and_saves_at_the_next_turn(tmp_path, capsys):
    with saving(tmp_path, on_error="go_on") as (checkpoints, save):
        step_by_step(save, checkpoints, history_of(), full=(4, 6))
        checkpoints.wait()
        assert checkpoints.steps() == [2, 8]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "step 4 could" in lines[0] and "step 6 could" in lines[1]
    assert all(line.endswith("tries again at its next save.") for line in lines)


@pytest.mark.parametrize("end", ["num_steps", "stop", "interrupted"])
def test_the_last_save_of_a_run_must_not_fail(tmp_path, end, monkeypatch):
    history = history_of(4 if end == "num_steps" else 8)
    history.interrupted = end == "interrupted"
    history.stop = Stop("enough") if end == "stop" else None

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "full")

    with saving(tmp_path, on_error="go_on") as (checkpoints, save):
        monkeypatch.setattr(checkpoints._manager, "save", fail)
        with pytest.raises(SaveFailed, match="No space left on device"):
            save.run(4, big(4), history)
        assert save.saved is None


def test_a_failure_of_the_last_save_that_shows_later_is_an_error_too(tmp_path):
    with saving(tmp_path, on_error="go_on") as (checkpoints, save):
        step_by_step(save, checkpoints, history_of(4), full=(4,))
        with pytest.raises(SaveFailed, match="step 4 could not be saved"):
            checkpoints.wait()


def test_a_step_that_was_saved_before_it_was_evaluated_is_marked_best(tmp_path):
    with saving(tmp_path) as (checkpoints, save):
        step_by_step(save, checkpoints, history_of(4))
    with saving(tmp_path) as (checkpoints, save):
        assert save.saved == 4 and not save.due(4, history_of())
        history = history_of(best_at=4)
        assert save.due(4, history)
        save.run(4, big(4), history)
        assert checkpoints.best() == 4 and not save.due(4, history)
        step_by_step(save, checkpoints, history, first=5)
    with saving(tmp_path) as (checkpoints, save):
        assert (checkpoints.steps(), checkpoints.best()) == ([2, 4, 6, 8], 4)


def test_a_step_that_says_itself_that_it_is_best_needs_no_mark(tmp_path):
    with saving(tmp_path) as (checkpoints, save):
        step_by_step(save, checkpoints, history_of(4, best_at=4))
        assert not save.due(4, history_of(best_at=4))
    with saving(tmp_path) as (checkpoints, save):
        assert not save.due(4, history_of(best_at=4))
        assert not (tmp_path / "best.json").exists()


def test_what_to_do_about_a_failed_save_is_no_part_of_a_runs_identity():
    changed = dataclasses.replace(RUN, on_save_error="go_on")
    fields = {field.name: field for field in dataclasses.fields(Experiment)}
    assert fields["on_save_error"].metadata == {"identity": "never"}
    with pytest.raises(UserError, match='on_save_error=.*"stop" or "go_on"'):
        dataclasses.replace(changed, on_save_error="warn")


def as_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


@pytest.mark.parametrize(
    ("bad", "make"),
    [
        ("run", as_file),
        ("", as_file),
        ("run/checkpoints", as_file),
        ("run/tensorboard", as_file),
        ("run/metrics.jsonl", Path.mkdir),
    ],
)
def test_a_file_or_directory_in_the_wrong_place_is_refused(tmp_path, bad, make):
    home = tmp_path / "home"
    (home / "run").parent.mkdir()
    if bad.startswith("run/"):
        (home / "run").mkdir()
    if not bad:
        home.rmdir()
    make(home / bad if bad else home)
    with pytest.raises(UserError, match=f"{(home / bad).name}.* another --run-dir"):
        RunDir(home / "run").require_writable()


@pytest.mark.skipif(not UNWRITABLE.parent.is_dir(), reason="needs Linux: /sys")
def test_a_place_where_nothing_can_be_written_is_refused():
    for path in (UNWRITABLE, UNWRITABLE / "deep" / "run"):
        with pytest.raises(UserError, match="/sys cannot be written"):
            RunDir(path).require_writable()


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path):
    RunDir(tmp_path / "not" / "yet").require_writable()
    assert list(tmp_path.iterdir()) == []
