"""The fewest bytes that each device of a layout has to send in a step of a decoder.

Let n devices share the rows (replica x data x context), and t a product (tensor). A sum
over n devices costs each of them 2 (n-1)/n of its bytes: (n-1)/n to add up slices, as
much again to bring them together. What a layout has to send:

* *gradients*, in precision.reduce, of the part of each parameter that a device computes
  with: once a step, however many microbatches and chunks of the loss there are.
  Where devices keep copies: a sum over all n. zero1: slices are added up, and the
  updated parameters brought together in their own type. fsdp keeps its sums in slices,
  so that they are added up for each microbatch; copies of slices (replica) once a step.
* *parameters* under fsdp: for each microbatch brought together in the type of the
  computation twice, for the forward and for the backward pass, as is usual. (Once a
  step would be less, at the memory of whole parameters.)
* *tensor*, in the type of the computation: for each layer two sums of the activations
  forward and two backward, one more where the forward pass is repeated (remat=full);
  with +sp, where the sequence is split between the products, each sum is half a one
  before and half a one behind, and the inputs of products are brought together once
  more for the gradients of weights. A sum for the embedding, one for the gradient that
  comes from the loss, and three numbers of float32 for each token's loss.
* *keys and values* over context, in the type of the computation. context: all of them
  to each device forward, their gradients back. ring: c-1 steps forward, c-1 backward,
  and c of the gradients. ulysses: queries, keys and values there and the result back,
  in both passes. With remat=full the forward part twice.

* *stages*, in the type of the computation: each microbatch's activations over each of
  the R x S - 1 borders between the chunks of S stages, and their gradients back.

* *experts*, in the type of the computation: of each token's choices those that other
  devices have, there and back in each pass; with remat=full the forward part twice.

Left out: positions, scalars, and the gradients of norms over tensor, which are small.
"""

import math

import jax.numpy as jnp

from jaxpar.experts.block import MoEConfig
from jaxpar.models.decoder import DecoderConfig
from jaxpar.partition.layout import Layout
from jaxpar.train.state import Recipe
from jaxpar.tree import flatten


def least(
    recipe: Recipe, layout: Layout, B: int, T: int, microbatches: int = 1
) -> dict[str, float]:
    """Bytes that each device cannot help sending in a step, by what they are for.

    B, T: rows of a step, and tokens of each; of all devices together.
    """
    tokens = B * T / _ways(layout)
    return {
        "gradients and parameters": _of_weights(recipe, layout, microbatches),
        "tensor": _of_tensor(recipe, layout, tokens),
        "keys and values": _of_keys(recipe, layout, tokens),
        "stages": _of_stages(recipe, layout, tokens),
        "experts": _of_experts(recipe, layout, tokens),
    }


def _ways(layout: Layout) -> int:
    """How many devices share the tokens of a step."""
    return math.prod(n for axis, n in layout.sizes.items() if axis != "tensor")


def _of_weights(recipe: Recipe, layout: Layout, microbatches: int) -> float:
    precision = recipe.precision
    reduce, compute, params = (
        jnp.dtype(kind).itemsize
        for kind in (precision.reduce, precision.compute, precision.params)
    )
    total = 0.0
    names = flatten(recipe.anatomy.names)
    for path, leaf in flatten(recipe.anatomy.shapes).items():
        used, stored, updated = (
            math.prod(layout.piece(leaf.shape, names[path], which))
            for which in ("computed", "stored", "optimizer")
        )
        n = _ways(layout)
        if "layers" in names[path]:  # A device computes with those of its stage.
            n, used = n // layout.n_stages, used // layout.n_stages
        if "experts" in names[path]:  # And with its own experts.
            n //= layout.sizes.get("expert", 1)
        # The half of a sum, or of its way back, over the devices that share slices.
        half = used - updated
        copies = n // (used // updated)
        if stored < used:
            total += microbatches * half * (reduce + 2 * compute)
        elif updated < used:
            total += half * (reduce + params)
        total += 2 * (copies - 1) / copies * updated * reduce
    return total


def _of_tensor(recipe: Recipe, layout: Layout, tokens: float) -> float:
    model, t = _decoder(recipe), layout.sizes.get("tensor", 1)
    repeated = model.remat == "full"
    half = tokens * model.d_embed * jnp.dtype(recipe.precision.compute).itemsize
    if "+sp" in layout.spelling:
        # Forward 4, backward 4, both inputs once more.
        halves = model.n_layers * (10 + repeated) + 4
    else:
        halves = model.n_layers * (8 + 2 * repeated) + 4
    return (t - 1) / t * (halves * half + 2 * 3 * tokens * 4)


def _of_stages(recipe: Recipe, layout: Layout, tokens: float) -> float:
    # The stages share the tokens, which each pass all borders, in all rounds.
    width = _decoder(recipe).d_embed * jnp.dtype(recipe.precision.compute).itemsize
    return 2 * (layout.n_stages * layout.n_rounds - 1) * tokens * width


def _of_experts(recipe: Recipe, layout: Layout, tokens: float) -> float:
    model, n = _decoder(recipe), layout.sizes.get("expert", 1)
    if not isinstance(model.experts, MoEConfig):
        return 0.0
    has = [has_experts for _, has_experts in model.pattern]
    n_layers = model.n_layers * sum(has) // len(has)
    width = model.d_embed * jnp.dtype(recipe.precision.compute).itemsize
    ways = 6 if model.remat == "full" else 4
    choices = tokens * model.experts.router.top_k
    return n_layers * ways * choices * (n - 1) / n * width


def _of_keys(recipe: Recipe, layout: Layout, tokens: float) -> float:
    model, c = _decoder(recipe), layout.sizes.get("context", 1)
    each = tokens * model.attention.head_dim / layout.sizes.get("tensor", 1)
    each *= jnp.dtype(recipe.precision.compute).itemsize
    keys = 2 * each * model.attention.n_kv_heads
    queries = 2 * each * model.attention.n_heads
    passes = 3 if model.remat == "full" else 2
    sent = {
        "": 0.0,
        "context": passes * keys * (c - 1),
        "ring": passes * keys * (c - 1) + keys * c,
        "ulysses": passes * (keys + queries) * (c - 1) / c,
    }
    return model.n_layers * sent[layout.attention]


def _decoder(recipe: Recipe) -> DecoderConfig:
    if not isinstance(recipe.model, DecoderConfig):
        raise TypeError(f"Only a decoder's bytes are known, not {recipe.model}.")
    return recipe.model
