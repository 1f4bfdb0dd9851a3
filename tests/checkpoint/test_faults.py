"""What lies in a checkpoint directory is kept, refused by name, or passed over."""

import contextlib
import dataclasses
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.errors import NoUsableCheckpoint, UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """All that the manager knows of a training state."""

    step: Any
    params: Any
    opt_state: Any
    decay_from: Any


def state_at(step, *, moments=jnp.float32, scale=1.0):
    params = {"a": jnp.arange(8.0) * scale, "b": {"w": jnp.ones((8, 2)) / 3}}
    moved = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.masked(
            optax.adamw(1e-3, mu_dtype=moments), {"a": True, "b": {"w": False}}
        ),
    )
    opt_state = jax.tree.map(lambda x: x + step, moved.init(params))
    return State(jnp.int32(step), params, opt_state, jnp.int32(2**31 - 1))


def target_on(state, shape=(1,), names=("data",)):
    """Leading axes split over the mesh's first axis where it divides them."""
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))

    def laid_out(leaf):
        split = leaf.ndim and leaf.shape[0] % shape[0] == 0
        spec = PartitionSpec(names[0]) if split else PartitionSpec()
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec)
        )

    return jax.tree.map(laid_out, state)


def put(directory, *steps, best=(), keep=3):
    with contextlib.closing(Checkpoints(directory, keep=keep)) as saver:
        for step in steps:
            saver.save(step, state_at(step), memory={"n": step}, best=step in best)


@contextlib.contextmanager
def reading(directory):
    with contextlib.closing(Checkpoints(directory, read_only=True)) as reader:
        yield reader


def test_an_optax_state_with_masks_comes_back_bit_equal_on_another_mesh(tmp_path):
    saved = state_at(3, moments=jnp.bfloat16)
    before = target_on(saved, (8,))
    laid = jax.device_put(saved, jax.tree.map(lambda leaf: leaf.sharding, before))
    with contextlib.closing(Checkpoints(tmp_path / "c")) as saver:
        saver.save(3, laid, memory={"best": 0.5}, best=False)
    for shape, names in (((8,), ("data",)), ((4, 2), ("x", "y")), ((1,), ("data",))):
        target = target_on(saved, shape, names)
        with reading(tmp_path / "c") as reader:
            found, memory = reader.restore(3, target)
        assert memory == {"best": 0.5}
        assert jax.tree.structure(found) == jax.tree.structure(saved)
        rows = zip(*map(jax.tree.leaves, (found, saved, target)), strict=True)
        for ours, theirs, wanted in rows:
            assert ours.dtype == theirs.dtype and ours.sharding == wanted.sharding
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_the_best_is_kept_even_if_it_is_where_the_run_began(tmp_path):
    put(tmp_path / "c", 0, 1, 2, 3, best=(0,), keep=2)
    with reading(tmp_path / "c") as reader:
        assert (reader.steps(), reader.best()) == ([0, 2, 3], 0)


def test_without_a_best_only_the_newest_are_kept(tmp_path):
    put(tmp_path / "c", 1, 2, 3, 4, keep=2)
    with reading(tmp_path / "c") as reader:
        assert (reader.steps(), reader.best()) == ([3, 4], None)


def test_moments_of_another_type_are_refused_not_cast(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "c")) as saver:
        saver.save(1, state_at(1, moments=jnp.bfloat16), memory={})
    with reading(tmp_path / "c") as reader:
        with pytest.raises(UserError, match="mu/a .* bfloat16 stored, .* float32 want"):
            reader.restore(1, target_on(state_at(1)))


def test_a_step_is_not_saved_twice_in_silence(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path / "c")) as saver:
        saver.save(2, state_at(2), memory={})
        with pytest.raises(RuntimeError, match="step 2 was not saved"):
            saver.save(2, state_at(2, scale=2.0), memory={})
    with reading(tmp_path / "c") as reader:
        found = reader.restore_params(2, target_on(state_at(2)).params)
    np.testing.assert_array_equal(found["a"], np.arange(8.0))


def test_empty_and_unfinished_directories_stand_in_nobodys_way(tmp_path):
    put(tmp_path / "c", 2)
    (tmp_path / "c" / "9").mkdir()
    (tmp_path / "c" / "5.orbax-checkpoint-tmp").mkdir()
    with reading(tmp_path / "c") as reader:
        assert reader.steps() == [2]
    assert (tmp_path / "c" / "9").is_dir(), "a reader changes nothing"
    put(tmp_path / "c", 4, 5)
    with reading(tmp_path / "c") as reader:
        assert reader.steps() == [2, 4, 5]


def test_a_damaged_newest_step_does_not_push_out_a_whole_one(tmp_path):
    put(tmp_path / "c", 2, 4)
    shutil.rmtree(tmp_path / "c" / "4" / "params")
    with pytest.raises(UserError, match=r"damaged steps \[4\].*go on from step 2"):
        Checkpoints(tmp_path / "c")
    assert (tmp_path / "c" / "2" / "params").is_dir()


def test_what_a_killed_deletion_leaves_does_not_stop_the_run(tmp_path):
    put(tmp_path / "c", 2, 4)
    shutil.rmtree(tmp_path / "c" / "2" / "params")
    put(tmp_path / "c", 6)
    with reading(tmp_path / "c") as reader:
        assert reader.steps() == [4, 6]


@pytest.mark.parametrize("read_only", [True, False])
def test_a_run_whose_steps_are_all_damaged_is_not_begun_again(tmp_path, read_only):
    put(tmp_path / "c", 2)
    shutil.rmtree(tmp_path / "c" / "2" / "params")
    with contextlib.closing(
        Checkpoints(tmp_path / "c", read_only=read_only)
    ) as checkpoints:
        with pytest.raises(NoUsableCheckpoint, match=r"steps \[2\], and none is whole"):
            checkpoints.newest()


def test_a_file_is_no_place_for_checkpoints(tmp_path):
    (tmp_path / "c").write_text("")
    for read_only in (True, False):
        with pytest.raises(UserError, match="/c "):
            Checkpoints(tmp_path / "c", read_only=read_only)
