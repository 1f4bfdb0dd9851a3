"""Dropout drawn by row and token, so that it is the same in every layout."""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpar.nn.sequence import token_numbers
from jaxpar.partition.sharding import constrain


def dropout(
    x: Float[Array, "B T D"], keys: jax.Array | None, name: str, rate: float
) -> Float[Array, "B T D"]:
    """Zeroes elements with probability `rate`, and divides the others by 1 - rate.

    keys [B] are the rows' own; without them, nothing is dropped. What is drawn depends
    on the row's key, on `name`, and on the token's number in the row (not on the place
    that a layout gives the token).
    """
    if keys is None or rate == 0.0:
        return x
    name_hash, tokens = zlib.crc32(name.encode()), token_numbers(x.shape[1])

    def draw(key):
        key = jax.random.fold_in(key, name_hash)
        token_keys = jax.vmap(lambda token: jax.random.fold_in(key, token))(tokens)
        keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[2:]))
        return keep(token_keys)

    kept = constrain(jax.vmap(draw)(keys), "batch", "seq", "embed")
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def for_layer(keys: jax.Array | None, layer: Int[Array, ""]) -> jax.Array | None:
    """The rows' keys [B], with the number of the layer folded in."""
    if keys is None:
        return None
    return jax.vmap(lambda key: jax.random.fold_in(key, layer))(keys)
