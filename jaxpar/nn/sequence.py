"""Rows in order, for layers that walk along the sequence: scan, cumsum, convolution."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

from jaxpar.errors import UserError
from jaxpar.partition.sharding import (
    WholeRowsNeeded,
    constrain,
    current_context,
)

ROWS = ("batch", "seq")


def in_order(x: Shaped[Array, "B T ..."], *names: str | None) -> jax.Array:
    """An activation whose rows are whole, with their tokens in order.

    names: of its axes, as `constrain` takes them. Layouts that split the sequence keep
    it elsewhere: `context` and `ring` in zigzag order. `as_stored` is the way back.

    Where C devices split the sequence, the array's last axis is split over them
    instead, in one all-to-all in which each sends (C - 1) / C of its piece; the
    gradient goes the same way back. If C does not divide that axis, each device gets
    all of it, for C - 1 times its piece. Where no layout splits the sequence this does
    nothing.

    Raises:
      UserError: names are not "batch", "seq" and one for each further axis.
    """
    if (spec := _whole_rows(x, names)) is None:
        return x
    x = jax.lax.with_sharding_constraint(constrain(x, *names), spec)
    x = _permuted(x, np.argsort(_token_numbers(x)))
    return jax.lax.with_sharding_constraint(x, spec)


def as_stored(x: Shaped[Array, "B T ..."], *names: str | None) -> jax.Array:
    """The inverse of `in_order`, at the same price: tokens as the layout has them."""
    if (spec := _whole_rows(x, names)) is None:
        return x
    x = _permuted(jax.lax.with_sharding_constraint(x, spec), _token_numbers(x))
    return constrain(jax.lax.with_sharding_constraint(x, spec), *names)


def _whole_rows(x: jax.Array, names: tuple[str | None, ...]) -> PartitionSpec | None:
    """How whole rows are placed; None where no layout splits the sequence."""
    if names[:2] != ROWS or len(names) != x.ndim:
        raise UserError(f"in_order, as_stored: the axes of {x.shape} are not {names}.")
    context = current_context()
    if context.manual_dims(ROWS, "computed")[1]:
        raise WholeRowsNeeded
    layout = context.automatic
    if layout is None or not layout.split(names, "computed")[1]:
        return None
    dims = list(layout.split(names, "computed"))
    seq, dims[1] = dims[1], ()
    pieces = math.prod(layout.sizes[axis] for axis in (*dims[-1], *seq))
    if len(dims) > 2 and x.shape[-1] % pieces == 0:
        dims[-1] += seq
    return PartitionSpec(*(dim or None for dim in dims))


def _token_numbers(x: jax.Array) -> np.ndarray:
    """The number of the token at each place of a row, in the layout's order."""
    layout = current_context().layout
    return layout.token_numbers(x.shape[1]) if layout else np.arange(x.shape[1])


def _permuted(x: jax.Array, order: np.ndarray) -> jax.Array:
    """The tokens in another order; the gradient is permuted back, not scattered."""

    @jax.custom_vjp
    def run(x):
        return jnp.take(x, order, axis=1)

    back = np.argsort(order)
    run.defvjp(lambda x: (run(x), None), lambda _, g: (jnp.take(g, back, axis=1),))
    return run(x)


def sum_of_row(x: Array) -> Array:
    """The sum over whole rows of what this device has added up over its tokens."""
    axes = current_context().manual_dims(ROWS, "computed")[1]
    return jax.lax.psum(x, axes) if axes else x


def whole_rows(x: Shaped[Array, "B t ..."]) -> Shaped[Array, "B T ..."]:
    """All tokens of the rows, in order, on every device that has a piece of them.

    For small arrays without a gradient, such as numbers of experts; `own_tokens` is the
    way back.
    """
    context = current_context()
    if context.layout is None:
        return x
    if axes := context.manual_dims(ROWS, "computed")[1]:
        x = jax.lax.all_gather(x, axes, axis=1, tiled=True)
    if not context.layout.reorders_seq:
        return x
    return jnp.take(x, np.argsort(_token_numbers(x)), axis=1)


def own_tokens(x: Shaped[Array, "B T ..."], length: int) -> Shaped[Array, "B t ..."]:
    """Of whole rows in order, the `length` tokens that this device has, as stored."""
    if current_context().layout is None:
        return x
    return jnp.take(x, token_numbers(length), axis=1)


def token_numbers(length: int) -> jax.Array:
    """Which token of a row stands at each place, [length]; see Layout.token_numbers.

    Where each device has its own piece of the rows, those of its piece.
    """
    context = current_context()
    if context.layout is None:
        return jnp.arange(length)
    (axes,) = context.manual_dims(("seq",), "computed")
    pieces = math.prod(context.layout.sizes[axis] for axis in axes)
    numbers = jnp.asarray(context.layout.token_numbers(length * pieces))
    if not axes:
        return numbers
    start = jax.lax.axis_index(axes) * length
    return jax.lax.dynamic_slice_in_dim(numbers, start, length)
