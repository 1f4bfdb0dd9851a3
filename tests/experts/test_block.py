"""A mixture of experts is the loop over its experts, and counts what it drops.

pytest tests/experts/test_block.py
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpar.errors import UserError
from jaxpar.experts.block import MoE, MoEConfig
from jaxpar.experts.router import RouterConfig
from jaxpar.nn.mlp import MLPConfig
from jaxpar.partition.precision import Precision
from jaxpar.partition.sharding import single_device

B, T, D, F, E, K = 3, 24, 8, 12, 6, 2
FLOAT64 = Precision(params="float64", compute="float64", reduce="float64")
ROUTER = RouterConfig(top_k=K, bias=True)
DROPLESS = MoEConfig(E, MLPConfig(F), ROUTER)
SPREADS = {
    "as it comes": np.zeros(E),
    "one gets every token": np.array([0.0, 0, 9, 0, 0, 0]),
    "one gets none": np.array([0.0, 0, 0, 0, -9, 0]),
}


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True), single_device(FLOAT64):
        yield


def made(config=DROPLESS, bias=SPREADS["as it comes"]):
    block = MoE(config, D, 1.0, nnx.Rngs(0))
    if config.router.bias:
        block.router_bias[...] = jnp.asarray(bias)
    return block


def inputs(n_rows=B):
    x = np.random.default_rng(1).standard_normal((n_rows, T, D))
    return jnp.asarray(x), jnp.ones((n_rows, T), bool)


def scores_of(block, x):
    logits = x @ block.w_router[...]
    sigmoid = block.config.router.score_function == "sigmoid"
    return jax.nn.sigmoid(logits) if sigmoid else jax.nn.softmax(logits)


def chosen_by(block, x):
    ranked = np.asarray(scores_of(block, x))
    if block.config.router.bias:
        ranked = ranked + np.asarray(block.router_bias[...])
    order = np.argsort(-ranked, axis=-1, kind="stable")
    return order[..., : block.config.router.top_k]


def in_a_loop(block, x, valid, capacity=0.0, chosen=None):
    """Every expert on every token, weighed by 0 where it was not chosen."""
    config, w = block.config, block
    scores = scores_of(block, x)
    chosen = chosen_by(block, x) if chosen is None else chosen
    gates = jnp.take_along_axis(scores, chosen, axis=-1)
    if config.router.norm_top_k:
        gates = gates / gates.sum(-1, keepdims=True)
    gates = gates * config.router.scaling_factor
    kept, dropped = np.ones(chosen.shape, bool), np.zeros(len(x), int)
    room = -(-capacity * T * config.router.top_k // E)
    for row in range(len(x)) if capacity else ():
        filled = np.zeros(E)
        for choice in range(config.router.top_k):
            for token in range(T):
                if not valid[row, token]:
                    continue
                expert = chosen[row, token, choice]
                kept[row, token, choice] = filled[expert] < room
                dropped[row] += filled[expert] >= room
                filled[expert] += 1
    y = jnp.zeros_like(x)
    for expert in range(E):
        here = (chosen == expert) & kept & np.asarray(valid)[..., None]
        hidden = x @ w.w_up[...][expert]
        hidden = hidden * jax.nn.silu(x @ w.w_gate[...][expert])
        weight = jnp.sum(gates * here, axis=-1, keepdims=True)
        y = y + weight * (hidden @ w.w_down[...][expert])
    return y, dropped


@pytest.mark.parametrize("bias", SPREADS.values(), ids=SPREADS)
def test_without_a_capacity_it_is_the_loop_over_experts(bias):
    block, (x, valid) = made(bias=bias), inputs()
    y, report = block(x, valid)
    want, _ = in_a_loop(block, x, valid)
    np.testing.assert_allclose(y, want, atol=1e-12)
    assert not np.any(report.dropped)
    assert np.all(np.sum(report.load, axis=1) == K * T)
    if bias.any():
        extreme = {9.0: T, -9.0: 0}[bias[np.argmax(np.abs(bias))]]
        assert np.all(report.load[:, np.argmax(np.abs(bias))] == extreme)

    def total(run):
        def loss(x, weights):
            graph, _ = nnx.split(block)
            return jnp.sum(run(nnx.merge(graph, weights), x) ** 2)

        return jax.grad(loss, (0, 1))(x, nnx.split(block)[1])

    found = total(lambda block, x: block(x, valid)[0])
    chosen = chosen_by(block, x)
    looped = total(lambda block, x: in_a_loop(block, x, valid, chosen=chosen)[0])
    for got, expected in zip(*map(jax.tree.leaves, (found, looped)), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-11)


@pytest.mark.parametrize("capacity", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("bias", SPREADS.values(), ids=SPREADS)
def test_a_capacity_drops_what_has_no_slot_and_counts_it(bias, capacity):
    config = dataclasses.replace(DROPLESS, capacity_factor=capacity)
    block, (x, valid) = made(config, bias), inputs()
    valid = valid.at[:, -3:].set(False)
    y, report = block(x, valid)
    want, dropped = in_a_loop(block, x, valid, capacity)
    np.testing.assert_allclose(y, want, atol=1e-12)
    np.testing.assert_array_equal(report.dropped, dropped)
    assert dropped.any() or capacity == 3.0


@pytest.mark.parametrize("capacity", [0.0, 1.0])
def test_a_row_is_computed_alike_in_any_batch(capacity):
    block = made(dataclasses.replace(DROPLESS, capacity_factor=capacity))
    x, valid = inputs()
    for row in range(B):
        for together, alone in zip(
            jax.tree.leaves(block(x, valid)),
            jax.tree.leaves(block(x[row : row + 1], valid[row : row + 1])),
            strict=True,
        ):
            np.testing.assert_allclose(together[row : row + 1], alone, atol=1e-13)


def test_padding_counts_nowhere():
    block, (x, valid) = made(), inputs()
    valid = valid.at[:, 10:].set(False)
    y, report = block(x, valid)
    short, of_short = block(x[:, :10], valid[:, :10])
    np.testing.assert_allclose(y[:, :10], short, atol=1e-13)
    assert not np.any(y[:, 10:])
    for got, want in zip(report, of_short, strict=True):
        np.testing.assert_allclose(got, want, atol=1e-13)


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalised", [True, False])
def test_all_forms_of_the_router_are_those_of_the_loop(scores, normalised):
    router = RouterConfig(3, scores, normalised, scaling_factor=2.5)
    block, (x, valid) = made(MoEConfig(E, MLPConfig(F), router)), inputs()
    y, _ = block(x, valid)
    np.testing.assert_allclose(y, in_a_loop(block, x, valid)[0], atol=1e-12)


def test_losses_are_those_of_their_papers():
    router = RouterConfig(K, balance_loss_coef=0.5, z_loss_coef=0.25)
    block, (x, valid) = made(dataclasses.replace(DROPLESS, router=router)), inputs()
    _, report = block(x, valid)
    logits = np.asarray(x @ block.w_router[...])
    z = np.log(np.exp(logits).sum(-1))
    p = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).mean(1)
    chosen = np.argsort(-logits, axis=-1)[..., :K].reshape(B, -1)
    f = np.stack([np.bincount(row, minlength=E) for row in chosen]) / (K * T)
    balance = E * (f * p).sum(-1)
    np.testing.assert_allclose(report.balance, balance, rtol=1e-12)
    wanted = 0.5 * balance + 0.25 * (z**2).mean(1)
    np.testing.assert_allclose(report.loss, wanted, rtol=1e-12)
    entropy = -(jax.nn.softmax(logits) * jax.nn.log_softmax(logits)).sum((1, 2))
    np.testing.assert_allclose(report.entropy, entropy, rtol=1e-12)


def test_shared_experts_see_every_token():
    config = dataclasses.replace(DROPLESS, n_shared_experts=2)
    block, (x, valid) = made(config), inputs()
    y, _ = block(x, valid)
    want = in_a_loop(block, x, valid)[0] + block.shared(x)
    np.testing.assert_allclose(y, want, atol=1e-12)


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda: MoEConfig(4, MLPConfig(8), RouterConfig(top_k=5)), "top_k=5.*top_k=4"),
        (lambda: MoEConfig(4, MLPConfig(8, bias=True)), "no biases"),
        (lambda: MoEConfig(0, MLPConfig(8)), "n_experts=0"),
        (
            lambda: MoEConfig(4, MLPConfig(8), capacity_factor=1.0, buffer_factor=0.5),
            "make one",
        ),
        (lambda: RouterConfig(top_k=1), "norm_top_k=False"),
        (
            lambda: MoEConfig(4, MLPConfig(8), capacity_factor=-1.0),
            "capacity_factor=-1.0",
        ),
        (lambda: RouterConfig(score_function="tanh"), "softmax, sigmoid"),
        (lambda: RouterConfig(z_loss_coef=-1.0), "z_loss_coef=-1.0"),
    ],
)
def test_what_makes_no_mixture_is_refused(wrong, says):
    with pytest.raises(UserError, match=says):
        wrong()
