"""A bug that only a mesh shows is found, and its place is named.

Each is planted where one device does not notice it, so that the reference, computed
without it, serves them all.
"""

import contextlib
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.cli import main
from jaxpar.generate import sampling
from jaxpar.models import decoder, sizes
from jaxpar.nn import attention, flash_attention, linear, mlp, norm, param
from jaxpar.nn.context_parallel import KeyBlock
from jaxpar.optim import optimizer
from jaxpar.partition.collectives import Collectives, local
from jaxpar.partition.sharding import current_context, gather
from jaxpar.pipeline import stages
from jaxpar.train import loss, objective
from jaxpar.verify import Reference, assert_same
from jaxpar.verify.computed import Computed
from jaxpar.verify.parts import PARTS, TOKENS
from jaxpar.verify.prove import prove
from tests.verify.conftest import before_bugs, run_of
from tests.verify.own_bug import OwnConfig

RESIDUAL = ("batch", "seq", "embed")
ROWS = ("batch", "seq")


def mean_of_means(unembed, x, targets, weights, *, chunk):
    """Each shard divides by its own weight."""

    def f(together, losses, weights):
        mean = jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1)
        return [together.psum(mean) / together.psum(1), together.psum(jnp.sum(weights))]

    losses = loss.token_losses(unembed(x), targets)
    run = local(f, in_axes=(ROWS, ROWS), out_axes=[(), ()], over="batch")
    mean, weight = run(losses, weights.astype(losses.dtype))
    return mean * weight


def without_psum(spec, x, w):
    """The down projection's partial sums are taken for the whole."""
    if spec != "BTF,FD->BTD":
        return linear.dense(spec, x, w)
    run = local(
        lambda _, x, w: x @ w,
        in_axes=(("batch", "seq", "mlp"), ("mlp", "embed")),
        out_axes=RESIDUAL,
        over="mlp",
    )
    return run(x, gather(w))


def drawn_by_shard(x, keys, name, rate):
    """Every shard but the first folds its own number into its rows' keys."""
    if keys is None:
        return x

    def f(together, data):
        keys = jax.random.wrap_key_data(data)
        own = jax.vmap(lambda key: jax.random.fold_in(key, together.index()))(keys)
        return jnp.where(together.index() == 0, data, jax.random.key_data(own))

    both = ("batch", None)
    run = local(f, in_axes=(both,), out_axes=both, over="batch")
    keys = jax.random.wrap_key_data(run(jax.random.key_data(keys)))
    return DROPOUT(x, keys, name, rate)


DROPOUT = decoder.dropout


def drawn_piece_by_piece(self, key, dims, dtype):
    """Matrices of the MLP are drawn piece by piece from one key."""
    layout = current_context().layout
    if "mlp" not in dims or layout is None or "tensor" not in layout.sizes:
        return DRAW(self, key, dims, dtype)
    names, whole = tuple(dims), tuple(dims.values())

    def f(_, like):
        return DRAW(self, key, dict(zip(names, like.shape, strict=True)), dtype)

    run = local(f, in_axes=(names,), out_axes=names, over="mlp")
    return run(jnp.zeros(whole))


DRAW = param.Init.__call__


def averaged_twice(grad, names):
    """The gradient of one weight is divided by the number of data shards."""
    layout = current_context().layout
    if names == ("embed", "mlp") and layout is not None:
        grad = grad / layout.batch_divisor
    return SPREAD(grad, names)


SPREAD = linear.reduce_gradient


def own_maximum(logits, targets):
    """Each shard of the vocabulary subtracts its own maximum."""

    def f(together, logits):
        top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
        total = jnp.sum(jnp.exp(logits - top[..., None]), axis=-1)
        return jnp.log(together.psum(total)) + top

    run = local(f, in_axes=(("batch", "seq", "vocab"),), out_axes=ROWS, over="vocab")
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return run(logits) - chosen


def local_positions(x, positions, theta):
    """As if each of the devices that split the batch had a piece of the sequence."""

    def f(together, positions):
        pieces = together.psum(1)
        return positions % (16 // pieces)

    run = local(f, in_axes=(ROWS,), out_axes=ROWS, over="batch")
    return ROTATE(x, run(positions), theta)


ROTATE = attention.rotate


def one_copy_is_wrong(w):
    """The gradient of a norm's scale is wrong on the second data shard alone."""

    @jax.custom_vjp
    def door(w):
        return w

    def backward(_, grad):
        names = (None,) * grad.ndim

        def f(together, grad):
            return grad * jnp.where(together.index() == 1, 1 + 1e-9, 1.0)

        return (local(f, in_axes=(names,), out_axes=names, over="batch")(grad),)

    door.defvjp(lambda w: (w, None), backward)
    return door(gather(w))


def off_by_one_block(self, x):
    """Keys and values go one device further round the ring than their places."""
    moved = PERMUTE(self, x)
    if not isinstance(x, KeyBlock):
        return moved
    k, v = PERMUTE(self, (moved.k, moved.v))
    return KeyBlock(k, v, moved.where)


PERMUTE = Collectives.permute


class Ahead(flash_attention.FlashAttention):
    """On the second piece of the sequence each query sees one key too many."""

    def forward(self, q, k, v, where, where_k, heads):
        with contextlib.suppress(NameError):
            second = jax.lax.axis_index("context") == 1
            where = where._replace(positions=where.positions + second)
        return super().forward(q, k, v, where, where_k, heads)


PLANTED = {
    "a ring off by one block": (
        (Collectives, "permute", off_by_one_block),
        "data=2,ring=4",
        ("forward", "layers/attn/mixed", 0, None, "ring"),
    ),
    "a wrong causal offset on one shard": (
        (attention, "FlashAttention", Ahead),
        "data=2,context=2",
        ("forward", "layers/attn/mixed", 0, {"context": 1}, "context"),
    ),
    "mean of per-shard means": (
        (objective, "chunked_loss", mean_of_means),
        "data=4",
        ("forward", "loss", None, None, "data"),
    ),
    "a missing psum": (
        (mlp, "dense", without_psum),
        "data=2,tensor=4",
        ("forward", "layers/mlp/out", 0, None, "tensor"),
    ),
    "dropout drawn by shard": (
        (decoder, "dropout", drawn_by_shard),
        "data=4",
        ("forward", "embed/out", None, {"data": [1, 2, 3]}, "data"),
    ),
    "init drawn by shard": (
        (param.Init, "__call__", drawn_piece_by_piece),
        "fsdp=2,tensor=2",
        ("init", "layers/mlp/w_down", 0, None, "tensor"),
    ),
    "a gradient averaged twice": (
        (linear, "reduce_gradient", averaged_twice),
        "replica=2,tensor=2",
        ("backward", "layers/mlp/w_gate", 2, None, "replica"),
    ),
    "a maximum not shared": (
        (loss, "token_losses", own_maximum),
        "tensor=2",
        ("forward", "loss", None, None, "tensor"),
    ),
    "local positions": (
        (attention, "rotate", local_positions),
        "data=2",
        ("forward", "layers/attn/mixed", 0, None, "data"),
    ),
    "a wrong copy of a gradient": (
        (norm, "gather", one_copy_is_wrong),
        "data=2,tensor=2",
        # Reduced once, at the end: all copies are equally wrong by then.
        ("backward", "norm/scale", None, None, "data"),
    ),
}


def larger_gradients(tree):
    """The optimizer gets the sum of what every device has, not one of them."""
    with contextlib.suppress(ValueError):
        # Outside a step there is no layout.
        pieces = current_context().layout.batch_divisor
        tree = jax.tree.map(lambda x: x * pieces, tree)
    return WIDE(tree)


WIDE = optimizer._wide


def shifted_without_keys(x, keys, name, rate):
    """Without dropout, the second data shard computes something else."""
    if keys is not None or name != "mlp":
        return DROPOUT(x, keys, name, rate)
    run = local(
        lambda together, x: x * (1 + 1e-6 * together.index()),
        in_axes=(RESIDUAL,),
        out_axes=RESIDUAL,
        over="batch",
    )
    return run(x)


def next_token(logits, key, how):
    """The second data shard adds one to each id that it chooses."""
    run = local(
        lambda together, ids: ids + together.index(),
        in_axes=(("batch",),),
        out_axes=("batch",),
        over="batch",
    )
    return run(CHOOSE(logits, key, how))


CHOOSE = sampling.choose
LATER = {
    "optimizer": (optimizer, "_wide", larger_gradients),
    "evaluate": (decoder, "dropout", shifted_without_keys),
    "generate": (sampling, "choose", next_token),
}


@pytest.fixture(scope="module")
def later(small):
    reference = Reference(small.experiment, parts=(*PARTS[4:], TOKENS))
    for part in reference.parts:
        reference.wanted(part)
    return reference


@pytest.mark.parametrize("where", LATER)
def test_a_bug_outside_the_gradient_is_found_where_it_is(where, later, monkeypatch):
    monkeypatch.setattr(*LATER[where])
    first = prove(later, "data=2").first
    assert first is not None and (first.where, first.axis) == (where, "data")


# The others are planted by `pytest -m slow`.
EVERYDAY = ("a missing psum", "a gradient averaged twice", "a ring off by one block")


@pytest.mark.parametrize(
    "bug",
    [
        pytest.param(bug, marks=() if bug in EVERYDAY else pytest.mark.slow)
        for bug in PLANTED
    ],
)
def test_a_planted_bug_is_found_and_located(bug, small, monkeypatch):
    (place, name, wrong), layout, expected = PLANTED[bug]
    monkeypatch.setattr(place, name, wrong)
    proof = prove(small, layout)
    assert not proof.passed
    assert proof.first is not None
    first = proof.first
    found = (first.where, first.name, first.layer, first.shard, first.axis)
    assert found == expected
    if first.where == "backward":
        right = {leaf.kind for leaf in proof.leaves if leaf.passed}
        assert {"init", "loss"} <= right


def stale_places(per_row, schedule):
    """A stage reads the places of the microbatch before the one that comes by."""
    places = FOR_ALL_STAGES(per_row, schedule)
    before = jnp.maximum(jnp.arange(schedule.n_microbatches) - 1, 0)
    return jax.tree.map(lambda rows: rows[before], places)


def one_tick_late(t, *more):
    """Inputs enter the first stage, and outputs leave the ring, one tick late."""
    return AT_HOME(t - 1, *more)


FOR_ALL_STAGES, AT_HOME = stages._for_all_stages, stages._at_home
IN_A_PIPELINE = {"_for_all_stages": stale_places, "_at_home": one_tick_late}


@pytest.fixture(scope="module")
def staged():
    """A reference whose layers and microbatches stages divide."""
    model = sizes.llama(
        vocab_size=120, n_layers=4, d_embed=16, n_heads=2, n_kv_heads=2, d_mlp=16,
        max_positions=24,
    )  # fmt: skip
    return before_bugs(run_of(model, batch_size=16, seq_len=16, microbatches=4))


@pytest.mark.parametrize("layout", ["stage=4", "stage=2x2"])
@pytest.mark.parametrize("name", IN_A_PIPELINE)
def test_a_bug_in_a_pipeline_is_found_in_its_first_layer(
    name, layout, staged, monkeypatch
):
    monkeypatch.setattr(stages, name, IN_A_PIPELINE[name])
    first = prove(staged, layout).first
    assert first is not None
    assert (first.where, first.layer, first.axis) == ("forward", 0, "stage")


def test_a_wrong_gradient_in_a_circular_pipeline_has_its_layer_and_stage(
    staged, monkeypatch
):
    """Stage 1 has the layers 1 and 3; its gradient of the first is doubled."""
    gradients = Computed.gradients.func

    def wrong(computed):
        grads, sums = gradients(computed)
        if computed.layout.n_rounds > 1:
            w = grads["layers"]["mlp"]["w_up"]
            twice = np.array(w)
            twice[2] *= 2
            with jax.enable_x64(True):
                grads["layers"]["mlp"]["w_up"] = jax.device_put(twice, w.sharding)
        return grads, sums

    changed = functools.cached_property(wrong)
    changed.__set_name__(Computed, "gradients")
    monkeypatch.setattr(Computed, "gradients", changed)
    first = prove(staged, "stage=2x2,data=2").first
    assert first is not None
    assert (first.where, first.name) == ("backward", "layers/mlp/w_up")
    assert (first.layer, first.shard) == (1, None)


def test_a_bug_in_ones_own_file_is_found_by_the_command(capsys):
    file = str(Path(__file__).parent / "own_bug.py")
    assert main(["verify", file, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert not said["passed"]
    assert said["first"] == {
        "where": "forward", "name": "own/out", "layer": None, "shard": None,
        "axis": "tensor",
    }  # fmt: skip


def test_the_helper_fails_with_the_table():
    with pytest.raises(AssertionError, match="FAILED.*tensor=2.*own/out"):
        assert_same(OwnConfig(), "tensor=2")
