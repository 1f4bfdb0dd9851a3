"""Embedding tables: rows looked up by token id."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar.partition.sharding import (
    axis_names,
    current_precision,
    gather_value,
    reduce_gradient,
)


def lookup(w: nnx.Param, ids: jax.Array) -> jax.Array:
    """Rows ids [B, T] of a table; the gradient is summed in `precision.reduce`."""
    kind, names = current_precision(), axis_names(w)
    shape = w.shape

    @jax.custom_vjp
    def rows(w):
        return gather_value(w, names, kind.compute)[ids]

    def backward(_, grad):
        table = jnp.zeros(shape, kind.reduce).at[ids].add(grad.astype(kind.reduce))
        return (reduce_gradient(table, names),)

    rows.defvjp(lambda w: (rows(w), None), backward)
    return rows(w[...])
