"""FLOPs are counted wherever they are in a jaxpr, and as the model has them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxpar.metrics.flops import model_flops, training_flops
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.optim.select import matching
from jaxpar.partition.layout import Layout
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe
from jaxpar.train.step import make_eval_step
from jaxpar.tree import flatten

ONCE = 2 * 8 * 4 * 4  # a product of [8, 4] and [4, 4]
x, w = jax.ShapeDtypeStruct((8, 4), "float32"), jax.ShapeDtypeStruct((4, 4), "float32")


def dot(x, w):
    return x @ w


def scanned(x, w):
    return jax.lax.scan(lambda x, _: (dot(x, w), None), x, length=5)[0]


@jax.custom_vjp
def custom(x, w):
    return dot(x, w)


custom.defvjp(lambda x, w: (custom(x, w), (x, w)), lambda saved, g: (g @ w.T, x.T @ g))


def test_a_product_counts_two_for_each_multiplication_and_addition():
    assert model_flops(dot, x, w) == ONCE
    heads = jax.ShapeDtypeStruct((2, 3, 8, 4), "float32")
    scores = model_flops(lambda q: jnp.einsum("BNTH,BNSH->BNTS", q, q), heads)
    assert scores == 2 * (2 * 3) * 8 * 8 * 4


def test_a_product_in_a_scan_counts_once_per_iteration():
    assert model_flops(scanned, x, w) == 5 * ONCE
    twice = model_flops(
        lambda x, w: jax.lax.scan(lambda x, _: (scanned(x, w), None), x, length=3), x, w
    )
    assert twice == 15 * ONCE
    assert (
        model_flops(lambda x, w: jax.lax.fori_loop(0, 7, lambda _, x: x @ w, x), x, w)
        == 7 * ONCE
    )  # noqa: E501


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, lambda _: custom])
def test_what_surrounds_a_product_does_not_change_its_count(wrap):
    assert model_flops(wrap(dot), x, w) == ONCE
    assert (
        model_flops(lambda x, w: jax.checkpoint(jax.jit(wrap(dot)))(x, w), x, w) == ONCE
    )  # noqa: E501


@pytest.mark.parametrize(
    "spec", [P("data"), P(("data", "tensor")), P(None), P(None, "tensor")]
)
def test_shards_count_as_the_whole_and_replicas_once(spec):
    mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    rows = P("tensor") if spec == P(None, "tensor") else P(None)

    def piece(x, w):
        y = dot(x, w)
        return jax.lax.psum(y, "tensor") if spec == P(None, "tensor") else y

    out = P(None) if spec == P(None, "tensor") else spec
    mapped = jax.shard_map(piece, mesh=mesh, in_specs=(spec, rows), out_specs=out)
    assert model_flops(mapped, x, w) == ONCE


def test_of_a_switch_the_branch_with_most_flops_counts():
    def choose(i, x, w):
        branches = (lambda x: x, lambda x: x @ w, lambda x: x @ w @ w)
        return jax.lax.switch(i, branches, x)

    assert model_flops(choose, jax.ShapeDtypeStruct((), "int32"), x, w) == 2 * ONCE


def test_a_loop_of_unknown_length_counts_once_and_warns():
    def until(x, w):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, x)

    with pytest.warns(UserWarning, match="256 FLOPs per iteration, of which one is"):
        assert model_flops(until, x, w) == ONCE


def test_a_row_of_a_ragged_product_is_multiplied_with_one_expert():
    experts = jax.ShapeDtypeStruct((3, 4, 4), "float32")
    sizes = jax.ShapeDtypeStruct((3,), "int32")
    assert model_flops(jax.lax.ragged_dot, x, experts, sizes) == ONCE


def test_a_convolution_of_width_one_is_a_product():
    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x[None], w[None], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )

    assert model_flops(convolve, x, w) == ONCE


def test_forward_and_backward_are_three_times_forward():
    def step(x, w):
        return jax.grad(lambda x, w: jnp.sum(scanned(x, w) ** 2), argnums=(0, 1))(x, w)

    assert model_flops(step, x, w) == 3 * model_flops(scanned, x, w)


B, T = 4, 16
GPT = sizes.gpt(vocab_size=250, n_layers=3, d_embed=16, n_heads=2, max_positions=T)
UNTIED = dataclasses.replace(GPT, tied=False)


def decoder_flops(model, *freeze):
    """The FLOPs of its forward pass, and of a training step with frozen paths."""
    recipe = Recipe(model, CausalLM(), AdamW(1e-3, 0, 1, freeze=freeze))
    ids = jax.ShapeDtypeStruct((B, T), "int32")
    batch = dict.fromkeys(("tokens", "targets", "positions", "segments"), ids)
    batch["weights"] = jax.ShapeDtypeStruct((B, T), "float32")
    forward = make_eval_step(recipe, Layout.parse("data=1").on(jax.devices()[:1]))
    params = recipe.anatomy.shapes
    frozen = matching(freeze, flatten(params), field="freeze")
    step = training_flops(forward, params, batch, frozen=frozen)
    return model_flops(forward, params, batch), step


@pytest.mark.parametrize("model", [GPT, UNTIED], ids=["tied", "untied"])
def test_a_step_that_trains_everything_has_three_forward_passes(model):
    forward, step = decoder_flops(model)
    assert step == 3 * forward


# By hand: 2 FLOPs for each weight and token; scores and their weighted sums, not halved
# for what is masked; no product for the lookup of embeddings.
MLPS = 3 * B * T * 2 * (2 * 16 * 64)
LAYERS = MLPS + 3 * B * T * 2 * (4 * 16 * 16)
SCORES = 3 * B * 2 * (2 * T * T * 16)
HEAD = B * T * 2 * 16 * 256


@pytest.mark.parametrize(
    ("freeze", "backward"),
    [
        # Weights of the layers have no gradients of their own; activations have.
        (("layers/*",), LAYERS + 2 * SCORES + 2 * HEAD),
        # The embedding was the only one that needed a gradient of the first layer.
        (("embedding", "positions", "layers/*"), 2 * HEAD),
        # No gradient goes below the norm; it needs that of the head's activations.
        (("embedding", "positions", "layers/*", "unembedding"), HEAD),
        (("unembedding",), 2 * LAYERS + 2 * SCORES + HEAD),
        # The norm's shift of the first queries makes all after them trained.
        (("layers/attn/*", "layers/mlp/*"), LAYERS + 2 * SCORES + 2 * HEAD),
        # As in a scan's gradient, all layers count like those above a trained one.
        (
            ("embedding", "positions", "layers/attn*", "layers/mlp_norm/*"),
            MLPS + LAYERS + 2 * SCORES + 2 * HEAD,
        ),
        (("*",), 0),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_a_gradient_that_no_trained_parameter_needs_is_not_counted(freeze, backward):
    forward, step = decoder_flops(UNTIED, *freeze)
    assert forward == LAYERS + SCORES + HEAD
    assert step == forward + backward


def test_a_frozen_tied_embedding_has_no_gradient_as_head_either():
    forward, step = decoder_flops(GPT, "embedding")
    assert step == 3 * forward - HEAD


def test_a_product_of_data_has_three_by_convention_unless_its_weight_is_frozen():
    def first_layer(params, x):
        return jax.nn.relu(x @ params["first"]) @ params["second"]

    params = {"first": w, "second": w}
    assert training_flops(first_layer, params, x) == 6 * ONCE
    assert training_flops(first_layer, params, x, frozen={"first"}) == 3 * ONCE
    assert training_flops(first_layer, params, x, frozen={"second"}) == 5 * ONCE


def test_rematerialisation_changes_no_count():
    remat = dataclasses.replace(GPT, remat="full")
    assert decoder_flops(remat, "layers/*") == decoder_flops(GPT, "layers/*")
