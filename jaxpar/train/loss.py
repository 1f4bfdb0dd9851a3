"""Cross-entropy that never holds the logits of a whole batch."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpar.nn.param import wide


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


def chunked_losses(
    unembed, x: Float[Array, "B T D"], targets: Int[Array, "B T"], *, chunk: int
) -> Float[Array, "B T"]:
    """Losses of every token, unembedding at most `chunk` positions at a time.

    The backward pass makes each chunk's logits again.
    """
    T = x.shape[1]
    size = max(n for n in range(1, min(chunk, T) + 1) if T % n == 0)

    @jax.checkpoint
    def piece(x, targets):
        return token_losses(unembed(x), targets)

    if size == T:
        return piece(x, targets)

    def pieces(a):
        return jnp.moveaxis(a.reshape(a.shape[0], T // size, size, *a.shape[2:]), 1, 0)

    def body(_, part):
        return None, piece(*part)

    _, losses = jax.lax.scan(body, None, (pieces(x), pieces(targets)))
    return jnp.moveaxis(losses, 0, 1).reshape(targets.shape)
