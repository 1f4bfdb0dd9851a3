"""Dropout that belongs to a row, so that no layout and no split changes it."""

import zlib

import jax
import jax.numpy as jnp

from jaxpar.partition.place import constrain


def dropout(x: jax.Array, keys: jax.Array | None, name: str, rate: float) -> jax.Array:
    """Zeroes a share `rate` of x [B, T, D], drawn from each row's own key [B]."""
    if keys is None or rate == 0.0:
        return x
    number = zlib.crc32(name.encode())

    def draw(key):
        return jax.random.bernoulli(
            jax.random.fold_in(key, number), 1 - rate, x.shape[1:]
        )

    kept = constrain(jax.vmap(draw)(keys), "batch", "seq", "embed")
    return jnp.where(kept, x / (1 - rate), jnp.zeros_like(x))


def for_layer(keys: jax.Array | None, layer: jax.Array) -> jax.Array | None:
    """The rows' keys, with the number of the layer folded in."""
    if keys is None:
        return None
    return jax.vmap(lambda key: jax.random.fold_in(key, layer))(keys)
