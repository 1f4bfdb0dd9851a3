"""What is saved is restored bit for bit on any mesh; the best and newest are kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.checkpoint.transfer import adopt
from jaxpar.errors import NoUsableCheckpoint, UserError
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW, Muon
from jaxpar.partition.layout import Layout
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe, create

MODEL = sizes.llama(
    vocab_size=120, n_layers=2, d_embed=32, n_heads=4, n_kv_heads=2, d_mlp=48,
    max_positions=16,
)  # fmt: skip


def recipe_of(optimizer=AdamW):
    optim = optimizer(peak_lr=1e-3, warmup_steps=1, decay_steps=10)
    return Recipe(MODEL, CausalLM(), optim)


def place(text):
    layout = Layout.parse(text)
    return layout.on(jax.devices()[: layout.n_devices])


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("optimizer", [AdamW, Muon])
def test_a_state_is_restored_bit_equal_on_another_layout(optimizer, tmp_path):
    recipe = recipe_of(optimizer)
    state = create(recipe, place("fsdp=4,tensor=2"), seed=3)
    state = dataclasses.replace(
        state,
        step=state.step + 7,
        opt_state=jax.tree.map(lambda x: x + 1, state.opt_state),
    )
    saver = Checkpoints(tmp_path / "c")
    saver.save(7, state, memory={"rule": {"n": 2}}, best=True)
    saver.close()
    reader = Checkpoints(tmp_path / "c", read_only=True)
    for text in ("fsdp=4,tensor=2", "data=8", "data=1"):
        restored, memory = reader.restore(7, recipe.target(place(text)))
        assert_equal(restored, state)
        assert memory == {"rule": {"n": 2}}
        params = reader.restore_params(7, recipe.target(place(text)).params)
        assert_equal(params, state.params)
    assert reader.best() == 7


def state_at(step=0):
    return dataclasses.replace(
        create(recipe_of(), place("data=1"), seed=0), step=jnp.int32(step)
    )


def test_the_best_and_the_newest_are_kept(tmp_path):
    saver = Checkpoints(tmp_path / "c", keep=2)
    for step in range(1, 7):
        saver.save(step, state_at(step), memory={}, best=step in (1, 2))
    saver.wait()
    assert saver.steps() == [2, 5, 6]
    assert (saver.best(), saver.newest()) == (2, 6)
    saver.close()
    saver = Checkpoints(tmp_path / "c", keep=2)
    saver.save(7, state_at(7), memory={})
    saver.close()
    assert Checkpoints(tmp_path / "c", read_only=True).steps() == [2, 6, 7]


def test_a_step_that_orbax_would_silently_skip_is_an_error(tmp_path):
    saver = Checkpoints(tmp_path / "c")
    saver.save(2, state_at(2), memory={})
    with pytest.raises(RuntimeError, match="step 1 was not saved"):
        saver.save(1, state_at(1), memory={})
    saver.close()


def test_an_empty_directory_does_not_count_as_a_checkpoint(tmp_path):
    saver = Checkpoints(tmp_path / "c")
    saver.save(2, state_at(2), memory={})
    saver.close()
    (tmp_path / "c" / "3").mkdir()
    assert Checkpoints(tmp_path / "c", read_only=True).newest() == 2


def test_another_shape_or_type_is_refused_by_name(tmp_path):
    saver = Checkpoints(tmp_path / "c")
    saver.save(2, state_at(2), memory={})
    saver.close()
    target = recipe_of().target(place("data=1"))
    for changed in (
        jax.ShapeDtypeStruct((128, 16), jnp.float32),
        jax.ShapeDtypeStruct((128, 32), jnp.bfloat16),
    ):
        params = {**target.params, "embedding": changed}
        with pytest.raises(UserError, match="embedding"):
            saver = Checkpoints(tmp_path / "c", read_only=True)
            saver.restore_params(2, params)


def test_a_damaged_step_is_named(tmp_path):
    # Only one array: when one of several fails, Orbax closes its event loop, and the
    # reads still running raise errors that pytest attributes to a later test.
    params = {"w": jnp.arange(8.0)}
    saver = Checkpoints(tmp_path / "c")
    saver.save(2, dataclasses.replace(state_at(2), params=params), memory={})
    saver.close()
    for file in (tmp_path / "c" / "2" / "params").rglob("d/*"):
        file.write_bytes(b"")
    reader = Checkpoints(tmp_path / "c", read_only=True)
    sharding = place("data=1").replicated
    with pytest.raises(NoUsableCheckpoint, match=r"c/2 cannot be read"):
        wanted = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=sharding)
        reader.restore_params(2, {"w": wanted})
    reader.close()


def test_adopt_accounts_for_every_parameter():
    fresh = {"a": jnp.zeros(2), "b": {"c": jnp.zeros(3), "d": jnp.zeros(1)}}
    source = {"a": jnp.ones(2), "b": {"c": jnp.ones(4)}, "e": jnp.ones(1)}
    with pytest.raises(UserError, match=r"missing.*b/d.*unused.*'e'.*misfit.*b/c"):
        adopt(fresh, source)
    source = {"a": jnp.ones(2)}
    adopted = adopt(fresh, source, keep_fresh=("b/*",))
    assert float(adopted["a"][0]) == 1 and adopted["b"]["c"].shape == (3,)
    with pytest.raises(UserError, match="matches nothing.*'z'"):
        adopt(fresh, fresh, keep_fresh=("z",))
