"""Unusual contents of a checkpoint directory are kept, refused by name, or ignored."""

import contextlib
import dataclasses
import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxpar.checkpoint import upgrades
from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.checkpoint.upgrades import FORMAT, UPGRADES
from jaxpar.errors import NoUsableCheckpoint, UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """The fields of a training state that the manager uses."""

    step: Any
    params: Any
    opt_state: Any
    decay_from: Any


def state_at(step, *, moments=jnp.float32, scale=1.0):
    params = {"a": jnp.arange(8.0) * scale, "b": {"w": jnp.ones((8, 2)) / 3}}
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(
            optax.adamw(1e-3, mu_dtype=moments), {"a": True, "b": {"w": False}}
        ),
    )
    opt_state = jax.tree.map(lambda x: x + step, optimizer.init(params))
    return State(jnp.int32(step), params, opt_state, jnp.int32(2**31 - 1))


def target_on(state, shape=(1,), names=("data",)):
    """The state's shapes, each split along its first axis if the mesh divides it."""
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))

    def sharded(leaf):
        split = leaf.ndim and leaf.shape[0] % shape[0] == 0
        spec = PartitionSpec(names[0]) if split else PartitionSpec()
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)
        )

    return jax.tree.map(sharded, state)


def save(directory, *steps, best=(), keep=3):
    with contextlib.closing(Checkpoints(directory, keep=keep)) as saver:
        for step in steps:
            saver.save(step, state_at(step), memory={"n": step}, best=step in best)


@contextlib.contextmanager
def reading(directory):
    with contextlib.closing(Checkpoints(directory, read_only=True)) as reader:
        yield reader


def test_an_optax_state_with_masks_is_restored_bit_equal_on_another_mesh(tmp_path):
    saved = state_at(3, moments=jnp.bfloat16)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target_on(saved, (8,)))
    with contextlib.closing(Checkpoints(tmp_path / "c")) as saver:
        state = jax.device_put(saved, shardings)
        saver.save(3, state, memory={"best": 0.5}, best=False)
    for shape, names in (((8,), ("data",)), ((4, 2), ("x", "y")), ((1,), ("data",))):
        target = target_on(saved, shape, names)
        with reading(tmp_path / "c") as reader:
            restored, memory = reader.restore(3, target)
        assert memory == {"best": 0.5}
        assert jax.tree.structure(restored) == jax.tree.structure(saved)
        trees = map(jax.tree.leaves, (restored, saved, target))
        for got, want, like in zip(*trees, strict=True):
            assert got.dtype == want.dtype and got.sharding == like.sharding
            np.testing.assert_array_equal(np.asarray(got), np.asarray(want))


def test_the_best_is_kept_even_if_it_is_the_initial_state(tmp_path):
    save(tmp_path / "c", 0, 1, 2, 3, best=(0,), keep=2)
    with reading(tmp_path / "c") as reader:
        assert (reader.steps(), reader.best()) == ([0, 2, 3], 0)


def test_without_a_best_only_the_newest_are_kept(tmp_path):
    save(tmp_path / "c", 1, 2, 3, 4, keep=2)
    with reading(tmp_path / "c") as reader:
        assert (reader.steps(), reader.best()) == ([3, 4], None)


def test_moments_of_another_type_are_refused_not_cast(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "c")) as saver:
        saver.save(1, state_at(1, moments=jnp.bfloat16), memory={})
    with reading(tmp_path / "c") as reader:
        with pytest.raises(UserError, match="mu/a .* bfloat16 stored, .* float32 want"):
            reader.restore(1, target_on(state_at(1)))


def test_saving_a_step_twice_is_an_error(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "c")) as saver:
        saver.save(2, state_at(2), memory={})
        with pytest.raises(RuntimeError, match="step 2 was not saved"):
            saver.save(2, state_at(2, scale=2.0), memory={})
    with reading(tmp_path / "c") as reader:
        params = reader.restore_params(2, target_on(state_at(2)).params)
    np.testing.assert_array_equal(params["a"], np.arange(8.0))


def test_empty_and_unfinished_directories_are_ignored(tmp_path):
    save(tmp_path / "c", 2)
    (tmp_path / "c" / "9").mkdir()
    (tmp_path / "c" / "5.orbax-checkpoint-tmp").mkdir()
    with reading(tmp_path / "c") as reader:
        assert reader.steps() == [2]
    assert (tmp_path / "c" / "9").is_dir(), "a reader changes nothing"
    save(tmp_path / "c", 4, 5)
    with reading(tmp_path / "c") as reader:
        assert reader.steps() == [2, 4, 5]


def test_a_damaged_newest_step_does_not_replace_a_complete_one(tmp_path):
    save(tmp_path / "c", 2, 4)
    shutil.rmtree(tmp_path / "c" / "4" / "params")
    with pytest.raises(UserError, match=r"damaged steps \[4\].*go on from step 2"):
        Checkpoints(tmp_path / "c")
    assert (tmp_path / "c" / "2" / "params").is_dir()


def test_what_an_interrupted_deletion_leaves_does_not_stop_the_run(tmp_path):
    save(tmp_path / "c", 2, 4)
    shutil.rmtree(tmp_path / "c" / "2" / "params")
    save(tmp_path / "c", 6)
    with reading(tmp_path / "c") as reader:
        assert reader.steps() == [4, 6]


@pytest.mark.parametrize("read_only", [True, False])
def test_a_run_whose_steps_are_all_damaged_is_not_started_again(tmp_path, read_only):
    save(tmp_path / "c", 2)
    shutil.rmtree(tmp_path / "c" / "2" / "params")
    with contextlib.closing(
        Checkpoints(tmp_path / "c", read_only=read_only)
    ) as checkpoints:
        with pytest.raises(NoUsableCheckpoint, match=r"steps \[2\], and none is whole"):
            checkpoints.newest()


def test_a_file_instead_of_the_directory_is_refused(tmp_path):
    (tmp_path / "c").write_text("")
    for read_only in (True, False):
        with pytest.raises(UserError, match="/c "):
            Checkpoints(tmp_path / "c", read_only=read_only)


def change_json(directory, step, change):
    path = directory / str(step) / "memory" / "metadata"
    item = json.loads(path.read_text())
    change(item)
    path.write_text(json.dumps(item))


def test_a_checkpoint_without_a_format_number_opens(tmp_path):
    save(tmp_path / "c", 2, best=(2,))
    change_json(tmp_path / "c", 2, lambda item: item.pop("format"))
    target = target_on(state_at(2))
    with reading(tmp_path / "c") as reader:
        state, memory = reader.restore(2, target)
        params = reader.restore_params(2, target.params)
        assert reader.best() == 2
    assert memory == {"n": 2} and int(state.step) == 2
    np.testing.assert_array_equal(params["a"], np.arange(8.0))


@pytest.mark.parametrize("number", [FORMAT + 1, 0, "two", 1.5, True, None])
def test_a_checkpoint_of_a_newer_or_no_known_format_is_refused(tmp_path, number):
    save(tmp_path / "c", 2)
    change_json(tmp_path / "c", 2, lambda item: item.update(format=number))
    target = target_on(state_at(2))
    message = f"c/2 .* format {number!r}; .* 1 to {FORMAT}. .* a newer jaxpar"
    with reading(tmp_path / "c") as reader:
        for read in (
            lambda: reader.memory(2),
            lambda: reader.restore(2, target),
            lambda: reader.restore_params(2, target.params),
        ):
            with pytest.raises(NoUsableCheckpoint, match=message):
                read()


def test_every_older_format_has_an_upgrade():
    assert sorted(UPGRADES) == list(range(1, FORMAT))


def test_older_formats_are_upgraded_one_after_another(monkeypatch):
    def added(key):
        return lambda item: {**item, key: len(item)}

    monkeypatch.setattr(upgrades, "FORMAT", 3)
    monkeypatch.setattr(upgrades, "UPGRADES", {1: added("one"), 2: added("two")})
    assert upgrades.upgraded({"n": 0}, "x") == {"n": 0, "one": 1, "two": 2}
    assert upgrades.upgraded({"n": 0, "format": 2}, "x") == {"n": 0, "two": 2}
    assert upgrades.upgraded({"n": 0, "format": 3}, "x") == {"n": 0}
