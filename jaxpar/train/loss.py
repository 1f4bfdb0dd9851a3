"""Chunked cross-entropy: next-token loss without the logits of a whole batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpar.partition.precision import wide
from jaxpar.partition.sharding import pieces_along

Unembed = Callable[[Float[Array, "B T D"]], Float[Array, "B T V"]]
"""From activations to logits, for any number T of positions."""


def token_losses(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """-log softmax(logits)[target], in nats and no less than float32.

    Made of reductions only (no indexing), so that `vocab` may be sharded.
    """
    logits = wide(logits)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    logsumexp = jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1)) + top[..., 0]
    ids = jnp.arange(logits.shape[-1], dtype=targets.dtype)[None, None]
    chosen = jnp.where(ids == targets[..., None], logits, 0.0)
    return logsumexp - jnp.sum(chosen, axis=-1)


def chunked_loss(
    unembed: Unembed,
    x: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    chunk: int,
) -> Float[Array, ""]:
    """The weighted sum of token losses, with logits of at most `chunk` positions.

    So many of each device's piece of a row, where the sequence is split.

    In a gradient, each chunk's gradients are computed while its logits exist, so that
    logits are neither kept nor computed twice (Hsu et al., 2024, section 3.2). The
    gradient with respect to the weights is 0.
    """
    pieces = pieces_along("seq")
    T = x.shape[1] // pieces
    size = max(n for n in range(1, min(chunk, T) + 1) if T % n == 0)

    def chunks(a: Array) -> Array:
        # A chunk has its positions of each piece, so that none is sent to be scored.
        a = a.reshape(a.shape[0], pieces, T // size, size, *a.shape[2:])
        a = jnp.moveaxis(a, 2, 0)
        return a.reshape(*a.shape[:2], pieces * size, *a.shape[4:])

    # Parameters that `unembed` closes over become arguments, to be differentiated.
    unembed, params = jax.closure_convert(unembed, x[:, : pieces * size])
    scored = chunks(targets), chunks(jax.lax.stop_gradient(wide(weights)))

    def chunk_loss(x, params, targets, weights):
        return jnp.sum(token_losses(unembed(x, *params), targets) * weights)

    @jax.custom_vjp
    def total(x, params):
        return jnp.sum(
            jax.lax.map(
                lambda part: chunk_loss(part[0], params, *part[1:]), (x, *scored)
            )
        )

    def forward(x, params):
        def body(grads, part):
            x, *scored = part
            loss_and_grads = jax.value_and_grad(chunk_loss, (0, 1))
            loss, (dx, dparams) = loss_and_grads(x, params, *scored)
            return jax.tree.map(lambda a, b: a + wide(b), grads, dparams), (loss, dx)

        zero = jax.tree.map(lambda w: jnp.zeros_like(wide(w)), params)
        grads, (losses, dx) = jax.lax.scan(body, zero, (x, *scored))
        grads = jax.tree.map(lambda g, w: g.astype(w.dtype), grads, params)
        return jnp.sum(losses), (dx, grads)

    def backward(grads, scale):
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)

    total.defvjp(forward, backward)
    return total(chunks(x), params)
