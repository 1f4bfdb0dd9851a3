"""Dropout that belongs to a row and a token, so that no layout changes it."""

import zlib

import jax
import jax.numpy as jnp

from jaxpar.partition.sharding import constrain, token_numbers


def dropout(x: jax.Array, keys: jax.Array | None, name: str, rate: float) -> jax.Array:
    """Zeroes a share `rate` of x [B, T, D], drawn from each row's own key [B]
    and the token's place in the row, wherever a layout puts it."""
    if keys is None or rate == 0.0:
        return x
    number, tokens = zlib.crc32(name.encode()), token_numbers(x.shape[1])

    def draw(key):
        key = jax.random.fold_in(key, number)
        each = jax.vmap(lambda token: jax.random.fold_in(key, token))(tokens)
        kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[2:]))
        return kept(each)

    kept = constrain(jax.vmap(draw)(keys), "batch", "seq", "embed")
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def for_layer(keys: jax.Array | None, layer: jax.Array) -> jax.Array | None:
    """The rows' keys, with the number of the layer folded in."""
    if keys is None:
        return None
    return jax.vmap(lambda key: jax.random.fold_in(key, layer))(keys)
