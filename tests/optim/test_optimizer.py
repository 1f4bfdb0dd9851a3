"""Which parameters are updated, by how much, and with which moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.errors import UserError
from jaxpar.optim.optimizer import AdamW, Muon
from jaxpar.optim.schedule import NEVER, Schedule
from jaxpar.partition.layout import Layout
from jaxpar.partition.sharding import single_device, use_layout
from jaxpar.tree import flatten

NAMES = {
    "embedding": ("vocab", "embed"),
    "layers": {
        "w_q": ("layers", "embed", "heads", "head_dim"),
        "w_o": ("layers", "heads", "head_dim", "embed"),
        "b_q": ("layers", "heads", "head_dim"),
    },
    "norm": {"scale": ("embed",)},
}
SIZES = {"vocab": 16, "embed": 8, "layers": 2, "heads": 4, "head_dim": 2}
CONSTANT = frozenset({"layers/b_q", "norm/scale"})
FLAT = {"warmup_steps": 0, "decay_steps": 10}


def tree(seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(
        lambda names: jnp.asarray(
            random.normal(size=[SIZES[n] for n in names]), jnp.float32
        ),
        NAMES,
        is_leaf=lambda names: isinstance(names, tuple),
    )


def step(config, params, grads, context=single_device):
    optimizer = config.build(NAMES, CONSTANT)
    state = optimizer.init(params)
    rate = optimizer.schedule(0)
    with context():
        return jax.jit(optimizer.update)(grads, state, params, rate)


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_parameters_initialised_to_a_constant_do_not_decay(kind):
    config = kind(peak_lr=0.1, weight_decay=0.5, **FLAT)
    zero = jax.tree.map(jnp.zeros_like, tree(0))
    updates, _ = step(config, tree(0), zero)
    for path, update in flatten(updates).items():
        assert bool(jnp.any(update != 0)) == (path not in CONSTANT), path


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_frozen_parameters_get_no_update_and_have_no_moments(kind):
    config = kind(peak_lr=0.1, freeze=("layers/*",), **FLAT)
    updates, state = step(config, tree(0), tree(1))
    for path, update in flatten(updates).items():
        assert bool(jnp.all(update == 0)) == path.startswith("layers/")
    assert not [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 2]


def test_a_glob_that_matches_nothing_is_refused():
    with pytest.raises(UserError, match=r"optim.freeze: 'layers/w_k'.*layers/w_q"):
        AdamW(peak_lr=0.1, freeze=("layers/w_k",), **FLAT).build(NAMES, CONSTANT)


def test_muon_orthogonalizes_each_layer_of_a_stack_separately():
    config = Muon(peak_lr=1.0, weight_decay=0.0, **FLAT)
    params, grads = tree(0), tree(1)
    both, _ = step(config, params, grads)
    grads["layers"]["w_q"] = grads["layers"]["w_q"].at[1].set(0.01)
    other, _ = step(config, params, grads)
    one = both["layers"]["w_q"][0].reshape(8, 8)
    np.testing.assert_allclose(
        one, other["layers"]["w_q"][0].reshape(8, 8), rtol=0.05, atol=0.02
    )
    singular = np.linalg.svd(one / (0.2 * 8**0.5), compute_uv=False)
    assert 0.5 < singular.min() and singular.max() < 1.4


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_a_mesh_does_not_change_the_update(kind):
    config = kind(peak_lr=0.1, **FLAT)
    placed = Layout.parse("fsdp=4,tensor=2").on(jax.devices())
    shardings = jax.tree.map(
        lambda names: placed.sharding(names, "stored"),
        NAMES,
        is_leaf=lambda names: isinstance(names, tuple),
    )
    one, _ = step(config, tree(0), tree(1))
    placed_trees = jax.device_put((tree(0), tree(1)), (shardings,) * 2)
    sharded, _ = step(config, *placed_trees, context=lambda: use_layout(placed))
    for path, update in flatten(one).items():
        np.testing.assert_allclose(flatten(sharded)[path], update, atol=2e-6)


def test_muon_distributes_its_matrices_over_the_devices():
    config = Muon(peak_lr=0.1, **FLAT)
    optimizer = config.build(NAMES, CONSTANT)

    def flops(n):
        placed = Layout.parse(f"data={n}").on(jax.devices()[:n])
        args = tree(1), optimizer.init(tree(0)), tree(0)
        with use_layout(placed):
            update = jax.jit(optimizer.update, in_shardings=placed.replicated)
            compiled = update.lower(*args, jnp.float32(0.1)).compile()
        return compiled.cost_analysis()["flops"]

    # Half of the iteration; elementwise work is not distributed.
    assert flops(2) < 0.7 * flops(1)


def schedule(**fields):
    return Schedule(
        **{"peak_lr": 1.0, "warmup_steps": 4, "stable_steps": 10, "decay_steps": 20,
           "final": 0.1, "shape": "cosine", **fields}
    )  # fmt: skip


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_a_schedule_has_a_warm_up_a_constant_and_a_decay(shape):
    s = schedule(shape=shape)
    rates = [float(s(i)) for i in range(40)]
    assert rates[0] == pytest.approx(0.25) and rates[3] == 1.0
    assert rates[4:13] == [1.0] * 9
    assert all(a > b for a, b in zip(rates[13:33], rates[14:34], strict=True))
    assert rates[33:] == pytest.approx([0.1] * 7)
    assert s.ends() == 34


def test_a_schedule_that_waits_decays_from_where_the_rule_begins_it():
    s = schedule(stable_steps=-1)
    assert float(s(10**6)) == 1.0 and s.ends() is None
    assert float(s(100, 90)) == float(schedule(stable_steps=86)(100))
    assert s.ends(90) == 110


def test_a_rule_cannot_begin_a_decay_later_than_planned():
    assert float(schedule()(20, NEVER)) == float(schedule()(20, 10**6))
