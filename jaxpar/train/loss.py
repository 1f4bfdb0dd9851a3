"""Cross-entropy that never holds the logits of a whole batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpar.partition.precision import wide


def token_losses(
    logits: Float[Array, "B T V"], targets: Int[Array, "B T"]
) -> Float[Array, "B T"]:
    """-log softmax(logits)[target]; reductions only, so `vocab` may be split."""
    logits = wide(logits)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    total = jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1)) + top[..., 0]
    ids = jnp.arange(logits.shape[-1], dtype=targets.dtype)[None, None]
    chosen = jnp.where(ids == targets[..., None], logits, 0.0)
    return total - jnp.sum(chosen, axis=-1)


def chunked_loss(
    unembed,
    x: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    chunk: int,
) -> Float[Array, ""]:
    """Sum of losses times weights, unembedding at most `chunk` positions at a time.

    Where it is differentiated, each chunk's gradients are made while its logits exist,
    so that no logits are kept or made twice (Hsu et al., 2024, section 3.2). The
    gradient with respect to the weights is 0.
    """
    T = x.shape[1]
    size = max(n for n in range(1, min(chunk, T) + 1) if T % n == 0)

    def pieces(a):
        return jnp.moveaxis(a.reshape(a.shape[0], T // size, size, *a.shape[2:]), 1, 0)

    unembed, params = jax.closure_convert(unembed, x[:, :size])
    given = pieces(targets), pieces(jax.lax.stop_gradient(wide(weights)))

    def piece(x, params, targets, weights):
        return jnp.sum(token_losses(unembed(x, *params), targets) * weights)

    @jax.custom_vjp
    def total(x, params):
        return jnp.sum(
            jax.lax.map(lambda part: piece(part[0], params, *part[1:]), (x, *given))
        )

    def forward(x, params):
        def body(grads, part):
            x, *given = part
            loss, (dx, more) = jax.value_and_grad(piece, (0, 1))(x, params, *given)
            return jax.tree.map(lambda a, b: a + wide(b), grads, more), (loss, dx)

        zero = jax.tree.map(lambda w: jnp.zeros_like(wide(w)), params)
        grads, (losses, dx) = jax.lax.scan(body, zero, (x, *given))
        grads = jax.tree.map(lambda g, w: g.astype(w.dtype), grads, params)
        return jnp.sum(losses), (dx, grads)

    def backward(grads, scale):
        return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)

    total.defvjp(forward, backward)
    return total(pieces(x), params)
