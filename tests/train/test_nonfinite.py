"""A step whose loss, gradient or update is not finite changes nothing, and is named.

pytest tests/train/test_nonfinite.py
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpar.errors import Diverged, UserError
from jaxpar.models import sizes
from jaxpar.nn.places import Places
from jaxpar.optim.optimizer import AdamW, Muon
from jaxpar.partition.layout import Layout
from jaxpar.train.events import Log
from jaxpar.train.loop import History
from jaxpar.train.nonfinite import NonfiniteSteps, make_finder, value_names
from jaxpar.train.objective import CausalLM
from jaxpar.train.scoring import per_token_and_byte, perplexity, total_loss
from jaxpar.train.state import NEVER, Recipe, TrainState, create
from jaxpar.train.step import make_train_step
from jaxpar.tree import flatten

B, T, V = 4, 16, 40
MODEL = sizes.llama(
    vocab_size=V, n_layers=1, d_embed=8, n_heads=2, n_kv_heads=2, d_mlp=16,
    max_positions=T,
)  # fmt: skip
ADAM = AdamW(peak_lr=1e-2, warmup_steps=0, decay_steps=10)
MUON = Muon(peak_lr=1e-2, warmup_steps=0, decay_steps=10)
EMPTY = TrainState(jnp.int32(0), {}, (), jnp.int32(NEVER))
LAYOUTS = ("data=1", "fsdp=2,tensor=2", "zero1=4")


@dataclasses.dataclass(frozen=True)
class NormAtZeros(CausalLM):
    """Its loss is finite; its gradient is NaN where a row has no 0: a root at 0."""

    def __call__(self, model, batch, keys):
        sums = super().__call__(model, batch, keys)
        where = Places(batch["positions"], batch["segments"])
        x, _ = model(batch["tokens"], where, keys)
        at = x * (batch["tokens"] == 0)[..., None].astype(x.dtype)
        roots = jnp.sqrt(jnp.sum(at**2, axis=(1, 2)))
        return sums._replace(loss=sums.loss + 1e-6 * jnp.sum(roots))


@dataclasses.dataclass(frozen=True)
class RootOfMoment(AdamW):
    """An optimizer that makes NaN of finite gradients, at its third update."""

    def scaled(self, names):
        def init(params):
            return optax.ScaleByScheduleState(jnp.zeros([], jnp.int32))

        def update(updates, state, params=None):
            root = jnp.sqrt(1.0 - jnp.maximum(state.count - 1, 0) * 2.0)
            updates = jax.tree.map(lambda u: u * root.astype(u.dtype), updates)
            return updates, optax.ScaleByScheduleState(state.count + 1)

        return optax.chain(
            super().scaled(names), optax.GradientTransformation(init, update)
        )


def batch(seed=0, *, zeros=True):
    tokens = np.random.default_rng(seed).integers(1, V, (B, T)).astype(np.int32)
    tokens[:, 0] = 0
    tokens[0, 0] = 0 if zeros else 1
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), tokens.shape),
        "segments": np.zeros_like(tokens),
        "weights": np.ones(tokens.shape, np.float32),
    }


def made(objective, optim, layout="data=1"):
    recipe = Recipe(MODEL, objective, optim)
    layout = Layout.parse(layout)
    placed = layout.on(jax.devices()[: layout.n_devices])
    state = create(recipe, placed, seed=0)
    return state, make_train_step(recipe, placed), value_names(state.params)


def kept(state):
    return jax.device_get((state.params, state.opt_state))


@pytest.mark.parametrize(
    ("optim", "layout"),
    [
        pytest.param(optim, layout, marks=() if first else pytest.mark.slow)
        for optim in (ADAM, MUON)
        for layout in LAYOUTS
        for first in [optim is ADAM and layout == "fsdp=2,tensor=2"]
    ],
)
def test_a_gradient_that_is_not_finite_changes_no_parameter_moment_or_count(
    optim, layout
):
    state, step, names = made(NormAtZeros(), optim, layout)
    state, metrics = step(state, batch())
    assert float(metrics["skipped"]) == 0
    before = kept(state)
    state, metrics = step(state, batch(1, zeros=False))
    assert math.isfinite(metrics["loss"]) and float(metrics["skipped"]) == 1
    assert "gradient of" in names[int(metrics["first_nonfinite"])]
    jax.tree.map(np.testing.assert_array_equal, kept(state), before)
    assert int(state.step) == 2
    # The next good batch is applied as if the bad one had not been there.
    state, metrics = step(state, batch(2))
    assert float(metrics["skipped"]) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(kept(state)))
    changed = flatten(kept(state)[0])["embedding"] != flatten(before[0])["embedding"]
    assert changed.any()


def test_an_update_that_is_not_finite_is_not_applied():
    optim = RootOfMoment(peak_lr=1e-2, warmup_steps=0, decay_steps=10)
    state, step, names = made(CausalLM(), optim)
    for i in range(2):
        state, metrics = step(state, batch(i))
    before = kept(state)
    state, metrics = step(state, batch(2))
    assert math.isfinite(metrics["grad_norm"]) and float(metrics["skipped"]) == 1
    assert names[int(metrics["first_nonfinite"])] == "the update of " + next(
        iter(sorted(flatten(state.params)))
    )
    jax.tree.map(np.testing.assert_array_equal, kept(state), before)


@pytest.mark.slow
def test_gradients_whose_norm_overflows_are_not_applied():
    # Each is finite; clipping would divide them by infinity.
    @dataclasses.dataclass(frozen=True)
    class Steep(CausalLM):
        def __call__(self, model, batch, keys):
            sums = super().__call__(model, batch, keys)
            return sums._replace(loss=sums.loss * 1e25)

    state, step, names = made(Steep(), ADAM)
    before = kept(state)
    state, metrics = step(state, batch())
    assert names[int(metrics["first_nonfinite"])] == "the norm of all gradients"
    jax.tree.map(np.testing.assert_array_equal, kept(state), before)


def test_a_finder_names_the_first_leaf_that_is_not_finite():
    find = make_finder()
    tree = {"a": jnp.ones(3), "b": {"c": jnp.array([1.0, jnp.inf]), "n": jnp.int32(2)}}
    assert find(tree) == "b/c"
    assert find({**tree, "b": tree["a"]}) == ""


def rows_of(skipped, policy, max_skipped=3):
    """The rows that a run writes whose steps were skipped (1) or not, and its error."""
    judge = NonfiniteSteps(
        ["the gradient of w", "the loss"],
        policy=policy,
        max_skipped=max_skipped,
        windows_of=lambda step: np.arange(40) + 100 * step,
        saved=lambda: "The newest checkpoint is step 7.",
    ).judge
    history, rows = History(), []
    for i, flag in enumerate(skipped):
        history.keep(
            i + 1, {"loss": 2.5, "skipped": np.float32(flag), "first_nonfinite": 0}
        )
    error = None
    try:
        Log(rows.append, every=1, judge=judge).run(len(skipped), EMPTY, history)
    except Diverged as found:
        error = str(found)
    return rows, error


def test_by_default_the_first_step_that_is_not_applied_ends_the_run_in_words():
    rows, error = rows_of([0, 1, 0], "stop")
    assert [row["step"] for row in rows] == [1, 2]
    assert "first_nonfinite" not in rows[0] and rows[0]["skipped"] == 0
    assert rows[1]["first_nonfinite"] == "the gradient of w"
    assert rows[1]["windows"] == list(range(200, 240))
    for words in (
        "Step 2 was not applied: the gradient of w is not finite (loss 2.5)",
        "windows 200, 201, ", "and 24 more", "The newest checkpoint is step 7.",
    ):  # fmt: skip
        assert words in error
    assert Diverged.exit_status == 43


def test_skipping_goes_on_until_too_many_steps_in_a_row_are_skipped():
    rows, error = rows_of([1, 1, 0, 1, 1, 0], "skip")
    assert error is None and [row["skipped"] for row in rows] == [1, 1, 0, 1, 1, 0]
    rows, error = rows_of([0, 1, 1, 1, 0], "skip")
    assert len(rows) == 4 and "number 3 in a row" in error and "Step 4" in error


@pytest.mark.parametrize("losses", [[1.0, math.nan], [math.inf, -math.inf]])
def test_an_evaluation_that_is_not_finite_is_a_score_and_no_error(losses):
    scores = total_loss(lambda params, loss: {"loss": loss, "weight": 1.0}, {}, losses)
    assert math.isnan(per_token_and_byte(scores, 8)["nats_per_token"])


def test_the_perplexity_of_a_huge_loss_is_infinite():
    assert perplexity(1e5) == math.inf and perplexity(None) is None
    assert perplexity(1.0) == math.exp(1.0)


@pytest.mark.parametrize("chunk", [0, -3])
def test_an_objective_without_a_chunk_is_refused(chunk):
    with pytest.raises(UserError, match=f"chunk={chunk}; it must be 1 or more"):
        CausalLM(chunk=chunk)
