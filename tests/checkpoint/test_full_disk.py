"""A save that fails is said at once, leaves nothing behind, and costs no older step."""

import contextlib
import dataclasses
import errno
import logging
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.checkpoint import failed_saves, library_warnings, verified
from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.checkpoint.verified import Check
from jaxpar.errors import SaveFailed
from tests.checkpoint.test_faults import reading, state_at
from tests.small_disks import FAILED_SAVES, files_of_at_most, small_disk

pytestmark = FAILED_SAVES
SECONDS = 30  # Two cores may be busy.
PAGE = 4096


def big(step, n=200_000):
    """A state whose parameters do not compress; 0.8 MB unless n says otherwise."""
    # Of one array only, as in test_manager.py.
    values = np.random.default_rng(step).standard_normal(n, np.float32)
    return dataclasses.replace(state_at(step), params={"w": jnp.asarray(values)})


def begin_and_fail(saver, step, state):
    """Begins to save on a disk that is full, until the failure is noticed."""
    saver.wait()
    with files_of_at_most(4096):
        saver.save(step, state, memory={})
        ends = time.monotonic() + SECONDS
        while not saver.has_failed:
            assert time.monotonic() < ends, "nobody noticed"
            time.sleep(0.01)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_failure_is_noticed_without_waiting_and_its_step_is_gone(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "c", keep=1)) as saver:
        saver.save(1, big(1), memory={}, best=False)
        saver.wait()
        assert not saver.has_failed
        begin_and_fail(saver, 2, big(2))
        assert names(tmp_path / "c") == ["1"]
        expected = r"c: step 2 could not be saved: File too large\. .*on from step 1\."
        with pytest.raises(SaveFailed, match=expected):
            saver.wait()
        assert (saver.steps(), saver.has_failed) == ([1], False)
    assert verified.damage_of(tmp_path / "c", 1, Check(strict=True)) == []


@pytest.mark.parametrize("by", ["save", "close"])
def test_a_failure_that_nobody_asked_for_surfaces_at_the_next_call(tmp_path, by):
    saver = Checkpoints(tmp_path / "c")
    begin_and_fail(saver, 2, big(2))
    with pytest.raises(SaveFailed, match="step 2 .* The same command begins anew"):
        if by == "save":
            saver.save(4, big(4), memory={})
        else:
            saver.close()
    assert names(tmp_path / "c") == []
    saver.close()


def test_saving_goes_on_after_a_failure_and_keeps_no_more_than_asked(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "c", keep=2)) as saver:
        saver.save(1, big(1), memory={}, best=True)
        for step in (2, 3):
            saver.save(step, big(step), memory={})
        # Orbax would have deleted step 2 after this save, and forgets it here.
        begin_and_fail(saver, 4, big(4))
        with pytest.raises(SaveFailed):
            saver.wait()
        assert saver.steps() == [1, 2, 3]
        saver.save(5, big(5), memory={})
        saver.wait()
        assert names(tmp_path / "c") == ["1", "3", "5"]


def test_a_save_that_cannot_begin_is_the_same_error(tmp_path, monkeypatch):
    with contextlib.closing(Checkpoints(tmp_path / "c")) as saver:
        saver.save(1, state_at(1), memory={})
        saver.wait()

        def fail(*args, **kwargs):
            raise OSError(errno.EDQUOT, "over quota")

        with monkeypatch.context() as patch:
            patch.setattr(saver._manager, "save", fail)
            message = r"step 2 could not be saved: Disk quota exceeded. .* are free"
            with pytest.raises(SaveFailed, match=message):
                saver.save(2, state_at(2), memory={})
        saver.save(3, state_at(3), memory={})
    with reading(tmp_path / "c") as reader:
        assert reader.steps() == [1, 3]


def test_the_line_has_the_bytes_where_the_disk_is_full(tmp_path):
    storage = ValueError("RESOURCE_EXHAUSTED: x [os_error_code='28'] [y='z']\nmore")
    for error in (OSError(errno.ENOSPC, "full"), storage):
        failed = failed_saves.explained(
            error, tmp_path, "step 4", newest=2, n_bytes=3 * 2**30
        )
        text = str(failed)
        assert "step 4 could not be saved: No space left on device." in text
        assert "takes up to 3.00 GiB; " in text and " are free there." in text
        assert text.endswith("The same command goes on from step 2.")


def test_a_state_that_cannot_fit_is_said_before(tmp_path, monkeypatch, capsys):
    state = state_at(1)
    failed_saves.warn_if_full(tmp_path / "not" / "yet", state)
    assert capsys.readouterr().err == ""
    free = failed_saves.state_bytes(state) - 1
    monkeypatch.setattr(failed_saves, "free_bytes", lambda directory: free)
    failed_saves.warn_if_full(tmp_path, state)
    assert "a checkpoint takes up to 0.2 KiB, and only" in capsys.readouterr().err


def test_only_what_orbax_left_is_removed(tmp_path):
    kept = ["12", "damaged-3", "best.json", "x.orbax-checkpoint-tmp"]
    for name in (*kept, "7.orbax-checkpoint-tmp", "8.orbax-checkpoint-tmp"):
        (tmp_path / name / "params").mkdir(parents=True)
    failed_saves.remove_unfinished(tmp_path)
    assert names(tmp_path) == sorted(kept)


def test_no_traceback_of_an_error_that_is_raised_is_logged_and_others_are(caplog):
    library_warnings.hide_raised_errors()
    logger = logging.getLogger("absl")
    try:
        raise OSError("full")
    except OSError:
        logger.exception("[process=0] Save Finalize thread (x) failed.")
        logger.exception("something else")
    logger.warning("Save Finalize thread is slow")
    logged = [record.getMessage() for record in caplog.records]
    assert logged == ["something else", "Save Finalize thread is slow"]


@pytest.mark.slow
@pytest.mark.parametrize("pages", [0, 1, 2, 4, 7, 10, 30, 33])
def test_whatever_file_no_longer_fits_the_next_save_is_good(tmp_path, capfd, pages):
    # With many small files, so that each of Orbax's is once the one that fails.
    with small_disk(tmp_path / "disk", "8m"):
        directory, filler = tmp_path / "disk" / "c", tmp_path / "disk" / "filler"
        saver = Checkpoints(directory, keep=5)
        saver.save(1, state_at(1), memory={})
        saver.wait()
        free = failed_saves.free_bytes(directory)
        filler.write_bytes(bytes(free - pages * PAGE))
        failures = 0
        for step in (2, 3):
            try:
                saver.save(step, state_at(step), memory={})
                saver.wait()
            except SaveFailed:
                failures += 1
            assert all(name.isdecimal() for name in names(directory))
        # How many pages a step needs varies with how its files are packed.
        assert failures or pages > 20
        filler.unlink()
        saver.save(4, state_at(4), memory={})
        saver.close()
        with reading(directory) as reader:
            assert reader.newest() == 4 and reader.steps()[0] == 1
        assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_disk_that_is_full_and_is_then_freed(tmp_path, capfd):
    with small_disk(tmp_path / "disk", "4m") as resize:
        directory = tmp_path / "disk" / "c"
        with contextlib.closing(Checkpoints(directory, keep=3)) as saver:
            message = "could not be saved: No space left on device. .*1.2 MiB.* free"
            with pytest.raises(SaveFailed, match=message) as failure:
                for step in range(1, 6):
                    saver.save(step, big(step, 320_000), memory={})
                    saver.wait()
            newest = saver.newest()
            assert f"goes on from step {newest}." in str(failure.value)
            assert names(directory) == [str(i) for i in range(1, newest + 1)]
            resize("16m")
            saver.save(9, big(9, 320_000), memory={})
        with reading(directory) as reader:
            assert reader.newest() == 9
        for step in range(2, newest + 1):
            assert verified.damage_of(directory, step, Check()) == []
        assert "ERROR:absl" not in capfd.readouterr().err
