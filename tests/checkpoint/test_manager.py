"""What is saved comes back, bit for bit, on any mesh; the best and newest stay."""

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


def recipe_of(kind=AdamW):
    optim = kind(peak_lr=1e-3, warmup_steps=1, decay_steps=10)
    return Recipe(MODEL, CausalLM(), optim)


def place(text):
    layout = Layout.parse(text)
    return layout.on(jax.devices()[: layout.n_devices])


def equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_a_state_comes_back_bit_equal_on_another_layout(kind, tmp_path):
    recipe = recipe_of(kind)
    state = create(recipe, place("fsdp=4,tensor=2"), seed=3)
    state = dataclasses.replace(
        state,
        step=state.step + 7,
        opt_state=jax.tree.map(lambda x: x + 1, state.opt_state),
    )
    with_saver = Checkpoints(tmp_path / "c")
    with_saver.save(7, state, memory={"rule": {"n": 2}}, best=True)
    with_saver.close()
    reader = Checkpoints(tmp_path / "c", read_only=True)
    for text in ("fsdp=4,tensor=2", "data=8", "data=1"):
        found, memory = reader.restore(7, recipe.target(place(text)))
        equal(found, state)
        assert memory == {"rule": {"n": 2}}
        params = reader.restore_params(7, recipe.target(place(text)).params)
        equal(params, state.params)
    assert reader.best() == 7


def small(step=0):
    return dataclasses.replace(
        create(recipe_of(), place("data=1"), seed=0), step=jnp.int32(step)
    )


def test_the_best_and_the_newest_are_kept(tmp_path):
    saver = Checkpoints(tmp_path / "c", keep=2)
    for step in range(1, 7):
        saver.save(step, small(step), memory={}, best=step in (1, 2))
    saver.wait()
    assert saver.steps() == [2, 5, 6]
    assert (saver.best(), saver.newest()) == (2, 6)
    saver.close()
    again = Checkpoints(tmp_path / "c", keep=2)
    again.save(7, small(7), memory={})
    again.close()
    assert Checkpoints(tmp_path / "c", read_only=True).steps() == [2, 6, 7]


def test_a_step_that_orbax_would_skip_in_silence_is_an_error(tmp_path):
    saver = Checkpoints(tmp_path / "c")
    saver.save(2, small(2), memory={})
    with pytest.raises(RuntimeError, match="step 1 was not saved"):
        saver.save(1, small(1), memory={})
    saver.close()


def test_an_empty_directory_is_no_checkpoint(tmp_path):
    saver = Checkpoints(tmp_path / "c")
    saver.save(2, small(2), memory={})
    saver.close()
    (tmp_path / "c" / "3").mkdir()
    assert Checkpoints(tmp_path / "c", read_only=True).newest() == 2


def test_another_shape_or_type_is_refused_by_name(tmp_path):
    saver = Checkpoints(tmp_path / "c")
    saver.save(2, small(2), memory={})
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


def test_damage_is_said_with_its_step(tmp_path):
    # One array: of several, the first that fails closes Orbax's event loop, and each
    # read still under way is then an exception that pytest counts against a later test.
    params = {"w": jnp.arange(8.0)}
    saver = Checkpoints(tmp_path / "c")
    saver.save(2, dataclasses.replace(small(2), params=params), memory={})
    saver.close()
    for file in (tmp_path / "c" / "2" / "params").rglob("d/*"):
        file.write_bytes(b"")
    reader = Checkpoints(tmp_path / "c", read_only=True)
    here = place("data=1").replicated
    with pytest.raises(NoUsableCheckpoint, match=r"c/2 cannot be read"):
        wanted = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=here)
        reader.restore_params(2, {"w": wanted})
    reader.close()


def test_adopt_accounts_for_every_parameter():
    fresh = {"a": jnp.zeros(2), "b": {"c": jnp.zeros(3), "d": jnp.zeros(1)}}
    old = {"a": jnp.ones(2), "b": {"c": jnp.ones(4)}, "e": jnp.ones(1)}
    with pytest.raises(UserError, match=r"missing.*b/d.*unused.*'e'.*misfit.*b/c"):
        adopt(fresh, old)
    old = {"a": jnp.ones(2)}
    taken = adopt(fresh, old, keep_fresh=("b/*",))
    assert float(taken["a"][0]) == 1 and taken["b"]["c"].shape == (3,)
    with pytest.raises(UserError, match="matches nothing.*'z'"):
        adopt(fresh, fresh, keep_fresh=("z",))
