"""A damaged step is named and passed over, refused, or moved aside; never restored."""

import contextlib
import dataclasses
import json
import os
import shutil
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.checkpoint import manifest_writer, verified
from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.checkpoint.verified import Check
from jaxpar.errors import NoUsableCheckpoint, SaveFailed
from jaxpar.guard import manifest
from jaxpar.guard.manifest import NAME
from tests.checkpoint.test_faults import reading, save, state_at, target_on

FULL, SIZES, NONE, STRICT = Check(), Check("sizes"), Check("none"), Check(strict=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three good steps; to be copied."""
    directory = tmp_path_factory.mktemp("whole") / "c"
    save(directory, 2, 4, 6, best=(4,))
    return directory


@pytest.fixture
def steps(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "c")


def kinds(folder):
    """One file of each kind that a step has: its path there, without hashed names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            hashed = path.parent.name == "d"
            found.setdefault(name.rpartition("/")[0] if hashed else name, name)
    return list(found.values())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


HARM = {
    "flipped": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "deleted": lambda path: path.unlink(),
}


def test_every_saved_step_has_its_manifest(whole):
    for step in (2, 4, 6):
        assert manifest.exists(whole / str(step))
        assert verified.damage_of(whole, step, STRICT) == []
    with reading(whole) as reader:
        assert reader.steps() == [2, 4, 6]
        assert reader.memory(6) == {"n": 6}


@pytest.mark.parametrize("harm", HARM)
def test_a_harmed_file_of_any_kind_is_named_and_an_older_step_is_taken(
    steps, harm, capsys
):
    names = kinds(steps / "6")
    assert len(names) > 15 and NAME in names
    for name in names:
        kept = (steps / "6" / name).read_bytes()
        HARM[harm](steps / "6" / name)
        if (name, harm) == (NAME, "deleted"):  # Then it is as if there never was one.
            assert verified.newest_good(steps, [2, 4, 6], FULL) == 6
            assert "Its content cannot be verified" in capsys.readouterr().err
            check = STRICT
        else:
            assert verified.newest_good(steps, [2, 4, 6], FULL) == 4
            said = capsys.readouterr().err
            assert said.startswith(f"step 6: {name}: ")
            assert said.endswith("; going back to step 4\n")
            check = FULL
            if harm != "flipped":
                assert verified.newest_good(steps, [2, 4, 6], SIZES) == 4
        with pytest.raises(NoUsableCheckpoint, match=f"c/6 is damaged: {name}"):
            verified.require_good(steps, 6, check)
        with pytest.raises(NoUsableCheckpoint, match=f"step 6: {name}.*--strict"):
            verified.newest_good(steps, [2, 4, 6], STRICT)
        verified.require_good(steps, 6, NONE)
        (steps / "6" / name).write_bytes(kept)
        capsys.readouterr()
    assert verified.newest_good(steps, [2, 4, 6], STRICT) == 6


def test_where_no_step_is_good_each_is_named_with_its_reason(steps):
    flip(steps / "2" / "memory" / "metadata")
    (steps / "4" / "params" / "_METADATA").unlink()
    os.truncate(steps / "6" / "rest" / "manifest.ocdbt", 3)
    words = (
        r"step 6: rest/manifest.ocdbt: 3 bytes, not \d+; step 4: params/_METADATA: "
        r"missing; step 2: memory/metadata: content changed; none .* --run-dir"
    )
    for choose in (
        lambda: verified.newest_good(steps, [2, 4, 6], FULL),
        lambda: verified.resumable(steps, FULL),
    ):
        with pytest.raises(NoUsableCheckpoint, match=words):
            choose()
    assert sorted(path.name for path in steps.iterdir()) == ["2", "4", "6"]


def test_the_best_is_passed_over_only_if_it_is_damaged(steps, capsys):
    assert verified.newest_good(steps, [2, 4, 6], FULL, best=[4]) == 4
    flip(steps / "4" / "params" / "_sharding")
    assert verified.newest_good(steps, [2, 4, 6], FULL, best=[4]) == 6
    assert "step 4: params/_sharding: content changed; going back to step 6" in (
        capsys.readouterr().err
    )


def test_a_damaged_mark_of_the_best_is_said(steps, capsys):
    assert verified.best_of(steps, [2, 4, 6], [4], FULL) == [4]
    path = steps / "4" / "memory" / "metadata"
    path.write_text(path.read_text().replace("true", "fals"))
    assert verified.best_of(steps, [2, 4, 6], [4], FULL) == []
    assert "step 4: memory/metadata" in capsys.readouterr().err
    with pytest.raises(NoUsableCheckpoint, match="memory/metadata.*may be the best"):
        verified.best_of(steps, [2, 4, 6], [4], STRICT)


def test_a_run_that_goes_back_can_save_again(steps, capsys):
    flip(steps / "6" / "params" / "_METADATA")
    assert verified.resumable(steps, FULL) == 4
    assert "step 6 was moved to" in capsys.readouterr().err
    save(steps, 6, 8, keep=9)
    with reading(steps) as reader:
        assert reader.steps() == [2, 4, 6, 8]
        target = target_on(state_at(6)).params
        params = reader.restore_params(6, target)
    np.testing.assert_array_equal(params["a"], np.arange(8.0))
    assert (steps / "damaged-6").is_dir()
    flip(steps / "8" / "params" / "_METADATA")
    flip(steps / "6" / "params" / "_METADATA")
    assert verified.resumable(steps, FULL) == 4
    assert {"damaged-6", "damaged-6-2", "damaged-8"} <= set(os.listdir(steps))


@pytest.mark.parametrize("check", [FULL, SIZES, NONE])
@pytest.mark.parametrize("text", ["", "{", "7", '{"qank": 1.0}', '{"rank": "x"}'])
def test_damaged_metrics_of_one_step_do_not_stop_the_others(steps, text, check, capsys):
    (steps / "2" / "metrics" / "metrics").write_text(text)
    with pytest.raises(NoUsableCheckpoint, match="2/metrics/metrics: "):
        Checkpoints(steps)
    with reading(steps) as reader:
        assert reader.restore_params(6, target_on(state_at(6)).params)
    with pytest.raises(NoUsableCheckpoint, match="2 is damaged: metrics/metrics"):
        verified.resumable(steps, Check(check.how, strict=True))
    assert verified.resumable(steps, check) == 6
    assert "step 2: metrics/metrics: " in capsys.readouterr().err
    save(steps, 8, keep=9)
    with reading(steps) as reader:
        assert reader.steps() == [4, 6, 8]
    assert (steps / "damaged-2").is_dir()


def test_another_number_in_the_metrics_is_seen_where_contents_are(steps):
    path = steps / "2" / "metrics" / "metrics"
    path.write_text(path.read_text().replace("0.0", "9.0"))
    assert verified.resumable(steps, SIZES) == 6
    assert (steps / "2").is_dir()
    assert verified.resumable(steps, FULL) == 6
    assert (steps / "damaged-2").is_dir()


def test_what_an_interrupted_deletion_leaves_stays(steps):
    shutil.rmtree(steps / "2" / "metrics")
    shutil.rmtree(steps / "4" / "params")
    (steps / "9").mkdir()
    assert verified.resumable(steps, FULL) == 6
    save(steps, 8, keep=9)
    with reading(steps) as reader:
        assert reader.steps() == [2, 6, 8]


def test_a_step_without_a_manifest_is_opened_with_a_warning(steps, capsys):
    for step in (2, 4, 6):
        (steps / str(step) / NAME).unlink()
    assert verified.newest_good(steps, [2, 4, 6], FULL) == 6
    assert f"c/6 has no {NAME}" in capsys.readouterr().err
    with pytest.raises(NoUsableCheckpoint, match=f"{NAME}: missing"):
        verified.newest_good(steps, [2, 4, 6], STRICT)


@pytest.mark.parametrize("harm", ["truncated", "emptied", "deleted"])
@pytest.mark.parametrize("name", ["memory/metadata", "params/_METADATA"])
def test_what_can_be_seen_without_a_manifest_is_seen(steps, name, harm):
    (steps / "6" / NAME).unlink()
    HARM[harm](steps / "6" / name)
    if harm == "deleted":
        shutil.rmtree((steps / "6" / name).parent)
        name = name.partition("/")[0]
    (damage, *_) = verified.damage_of(steps, 6, SIZES)
    assert damage.file == name


def test_damage_that_only_shows_while_reading_names_the_step(tmp_path):
    # Of one array only, as in test_manager.py.
    state = dataclasses.replace(state_at(2), params={"w": jnp.ones(8)})
    with contextlib.closing(Checkpoints(tmp_path / "c")) as saver:
        saver.save(2, state, memory={})
    (tmp_path / "c" / "2" / NAME).unlink()
    for path in (tmp_path / "c" / "2" / "params").rglob("d/*"):
        path.unlink()
    with reading(tmp_path / "c") as reader:
        with pytest.raises(NoUsableCheckpoint, match="c/2 cannot be read.*move it"):
            reader.restore_params(2, target_on(state).params)


@pytest.mark.parametrize("text", ["7", "null", "[]"])
def test_a_memory_that_is_no_object_is_damage(steps, text):
    (steps / "6" / NAME).unlink()
    (steps / "6" / "memory" / "metadata").write_text(text)
    with reading(steps) as reader:
        assert reader.best() == 4
        with pytest.raises(NoUsableCheckpoint, match="c/6 cannot be read"):
            reader.memory(6)


def test_metadata_of_one_step_that_are_no_object_do_not_stop_the_others(steps):
    (steps / "2" / "_CHECKPOINT_METADATA").write_text("7")
    with pytest.raises(NoUsableCheckpoint, match="2/_CHECKPOINT_METADATA: not a JSON"):
        Checkpoints(steps)
    assert verified.resumable(steps, NONE) == 6
    save(steps, 8, keep=9)


def test_links_out_of_the_run_are_refused_but_the_directory_may_be_one(steps, tmp_path):
    (tmp_path / "link").symlink_to(steps)
    assert verified.damage_of(tmp_path / "link", 6, STRICT) == []
    shutil.move(steps / "6", tmp_path / "elsewhere")
    (steps / "6").symlink_to(tmp_path / "elsewhere")
    (damage,) = verified.damage_of(steps, 6, FULL)
    assert damage.what == "a link that leaves the run"
    assert verified.resumable(steps, FULL) == 4
    assert (tmp_path / "elsewhere" / "params").is_dir()


def test_all_steps_are_checked(steps, capsys):
    flip(steps / "2" / "params" / "_sharding")
    (steps / "4" / "memory" / "metadata").unlink()
    good, bad = verified.check_all(steps, FULL)
    assert good == [6]
    assert bad == {2: ["params/_sharding"], 4: ["memory/metadata"]}
    assert "step 2: params/_sharding: content changed" in capsys.readouterr().err


def test_a_manifest_is_written_beside_the_training(tmp_path, monkeypatch):
    go_on, written = threading.Event(), []

    def write(folder):
        go_on.wait(10)
        written.append((folder.name, threading.current_thread()))

    monkeypatch.setattr(manifest_writer.manifest, "write", write)
    committed = []
    saver = Checkpoints(tmp_path / "c", on_commit=committed.append)
    saver.save(2, state_at(2), memory={})
    assert written == [] and committed == []
    go_on.set()
    saver.save(4, state_at(4), memory={})
    assert committed[0] == 2 and written[0][0] == "2"
    assert written[0][1] is not threading.main_thread()
    saver.close()
    assert committed == [2, 4]


def test_a_manifest_that_cannot_be_written_is_said_and_no_error(
    tmp_path, monkeypatch, capsys
):
    def write(folder):
        raise OSError("disk full")

    monkeypatch.setattr(manifest_writer.manifest, "write", write)
    save(tmp_path / "c", 2)
    assert "manifest could not be written (disk full)" in capsys.readouterr().err
    assert verified.newest_good(tmp_path / "c", [2], FULL) == 2


def test_a_failed_save_has_no_manifest_and_leaves_no_thread(tmp_path, monkeypatch):
    saver = Checkpoints(tmp_path / "c")
    saver.save(2, state_at(2), memory={})
    saver.wait()

    def fail():
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(saver._manager, "wait_until_finished", fail)
        with pytest.raises(SaveFailed, match="no space left"):
            saver.save(4, state_at(4), memory={})
    assert saver._manifests._thread is None
    with contextlib.closing(saver):
        assert saver.steps() == [2]


def test_the_best_is_kept_as_before(steps):
    with contextlib.closing(Checkpoints(steps, keep=1)) as saver:
        saver.save(8, state_at(8), memory={}, best=False)
    with reading(steps) as reader:
        assert reader.steps() == [4, 8]
        assert (reader.best(), reader.marked_best()) == (4, [4])
    item = json.loads((steps / "8" / "memory" / "metadata").read_text())
    assert item["is_best"] is False and jnp.isfinite(item["format"])
