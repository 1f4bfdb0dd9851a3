"""Embedding tables: looking up rows by token id."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxpar.partition.sharding import (
    axis_names,
    current_precision,
    gather_value,
    in_this_context,
    reduce_gradient,
    whole_shape,
)


def lookup(w: nnx.Param, ids: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """The rows of a table with these ids; the gradient is summed in `precision.reduce`.

    The table is gathered and cast here.
    """
    precision, names, value = current_precision(), axis_names(w), w[...]
    shape = whole_shape(value, names)

    @jax.custom_vjp
    def rows(w):
        return gather_value(w, names, precision.compute)[ids]

    def backward(_, grad):
        table = jnp.zeros(shape, precision.reduce)
        table = table.at[ids].add(grad.astype(precision.reduce))
        return (reduce_gradient(table, names).astype(value.dtype),)

    rows.defvjp(in_this_context(lambda w: (rows(w), None)), in_this_context(backward))
    return rows(value)
