"""A step that was saved before it was evaluated can be marked as the best later."""

import contextlib
import json

import pytest

from jaxpar.checkpoint import verified
from jaxpar.checkpoint.best_mark import NAME
from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.checkpoint.verified import Check
from jaxpar.errors import SaveFailed, UserError
from tests.checkpoint.test_faults import reading, save, state_at


def mark(directory, step):
    with contextlib.closing(Checkpoints(directory, keep=9)) as saver:
        saver.mark_best(step)


def bests(directory):
    with reading(directory) as reader:
        return reader.best(), reader.marked_best()


def test_a_mark_counts_beside_those_of_the_steps(tmp_path):
    save(tmp_path, 2, 4, 6, best=(2,))
    mark(tmp_path, 4)
    assert bests(tmp_path) == (4, [2, 4])
    save(tmp_path, 8, best=(8,), keep=9)
    assert bests(tmp_path) == (8, [2, 4, 8])
    assert verified.check_all(tmp_path, Check(strict=True)) == ([2, 4, 6, 8], {})
    assert verified.resumable(tmp_path, Check()) == 8


def test_a_marked_step_is_kept_until_there_is_a_better_one(tmp_path):
    save(tmp_path, 2, 4, best=(2,), keep=2)
    with contextlib.closing(Checkpoints(tmp_path, keep=1)) as saver:
        saver.mark_best(4)
        saver.save(6, state_at(6), memory={})
        saver.save(8, state_at(8), memory={})
        saver.wait()
        assert saver.steps() == [4, 8]
    save(tmp_path, 10, keep=1)
    with reading(tmp_path) as reader:
        assert reader.steps() == [4, 10]
    save(tmp_path, 12, 14, best=(12,), keep=1)
    with reading(tmp_path) as reader:
        assert (reader.steps(), reader.best()) == ([12, 14], 12)


def test_only_a_step_that_is_there_can_be_marked(tmp_path):
    save(tmp_path, 2)
    with pytest.raises(UserError, match="no checkpoint of step 3"):
        mark(tmp_path, 3)
    assert not (tmp_path / NAME).exists()


def test_a_mark_does_not_pass_to_a_step_that_is_trained_again(tmp_path):
    save(tmp_path, 2, 4)
    mark(tmp_path, 4)
    verified.step_directories.move_aside(tmp_path / "4")
    assert bests(tmp_path) == (None, [])
    save(tmp_path, 4)
    assert bests(tmp_path) == (None, [])


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: text.replace("4", "2", 1),  # One flipped bit or two.
        lambda text: text[:-3],
        lambda text: "[" * 100_000,
        lambda text: "[4]",
        lambda text: json.dumps({"step": "4"}),
        lambda text: json.dumps({"step": 4}),
    ],
)
def test_a_damaged_or_foreign_mark_is_ignored_aloud(tmp_path, capsys, change):
    save(tmp_path, 2, 4, best=(2,))
    mark(tmp_path, 4)
    (tmp_path / NAME).write_text(change((tmp_path / NAME).read_text()))
    capsys.readouterr()
    assert bests(tmp_path) == (2, [2])
    assert f"{NAME} is damaged" in capsys.readouterr().err
    mark(tmp_path, 4)
    assert bests(tmp_path) == (4, [2, 4])


def test_no_flipped_bit_of_a_mark_is_silent(tmp_path, capsys):
    save(tmp_path, 2, 4, 6, best=(2,))
    mark(tmp_path, 4)
    whole = (tmp_path / NAME).read_bytes()
    for i in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[i // 8] ^= 1 << i % 8
        (tmp_path / NAME).write_bytes(flipped)
        with reading(tmp_path) as reader:
            marked = reader._mark.step
        assert marked == 4 or "is damaged" in capsys.readouterr().err


def test_a_mark_that_cannot_be_written_is_an_error_and_no_mark(tmp_path):
    save(tmp_path, 2, best=(2,))
    with contextlib.closing(Checkpoints(tmp_path)) as saver:
        saver.save(4, state_at(4), memory={})
        saver.wait()
        (tmp_path / NAME).mkdir()
        with pytest.raises(SaveFailed, match="the mark of step 4 could not be saved"):
            saver.mark_best(4)
        assert saver.best() == 2
