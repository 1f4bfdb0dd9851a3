"""Linear (dense) layers: products of activations with sharded parameters; biases."""

import functools
import math
from collections.abc import Sequence
from types import EllipsisType

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxpar import axes
from jaxpar.errors import UserError
from jaxpar.partition.precision import wide, wide_type
from jaxpar.partition.sharding import (
    AxisNames,
    axis_names,
    constrain,
    current_precision,
    gather,
    gather_value,
    in_this_context,
    is_recomputed,
    matmul_rows,
    pieces_along,
    reduce_gradient,
    whole_shape,
)

RowNames = tuple[str | EllipsisType, ...]
"""Names of the axes of x that a product keeps; `...` is left to the compiler."""


def dense(spec: str, x: Float[Array, "..."], w: nnx.Param) -> Float[Array, "..."]:
    """An einsum such as "BTD,DNH->BTNH" of an activation and a parameter.

    The letters are those of jaxpar.axes; those that are contracted stand last in x and
    first in w. The weight is gathered and cast here; its gradient is computed, and
    reduced over devices, in `precision.reduce`, whatever the compute dtype.

    Raises:
      UserError: the spec contracts other letters.
    """
    (y,) = dense_each(x, (spec, w))
    return y


def dense_logits(
    spec: str, x: Float[Array, "..."], w: nnx.Param
) -> Float[Array, "..."]:
    """`dense` for an unembedding: the product itself is in no less than float32."""
    dtype = wide_type(current_precision().compute)
    (y,) = project(x, _row_names(spec), [w[...]], [axis_names(w)], result=dtype)
    return y


def dense_each(
    x: Float[Array, "..."], *products: tuple[str, nnx.Param]
) -> list[Float[Array, "..."]]:
    """`dense` of one activation with several parameters: pairs (spec, w).

    The gradient of x is summed over the products before it is reduced over devices:
    once, rather than once for each product.

    Raises:
      UserError: a spec is refused, or two of them contract different letters of x.
    """
    rows = [_row_names(spec) for spec, _ in products]
    if len(set(rows)) > 1:
        raise UserError("dense_each: products contract different letters of x.")
    ws = [w[...] for _, w in products]
    return project(x, rows[0], ws, [axis_names(w) for _, w in products])


def _row_names(spec: str) -> RowNames:
    """The names of the axes of x that an einsum does not contract."""
    left, right, out = spec.replace("->", ",").split(",")
    n = sum(letter in left for letter in right)
    if left[-n:] != right[:n] or left[:-n] + right[n:] != out:
        raise UserError(f"dense({spec!r}): contract x's last letters with w's first.")
    return tuple(axes.NAME_OF.get(letter, ...) for letter in left[:-n])


def project(
    x: Float[Array, "..."],
    rows: RowNames,
    ws: Sequence[Float[Array, "..."]],
    names: Sequence[AxisNames],
    *,
    result: DTypeLike | None = None,
) -> list[Float[Array, "..."]]:
    """Contracts the axes of x after `rows` with the first axes of each of ws.

    rows are the names of the first axes of x, names those of the axes of each of ws.
    result: the type of the products; None is that of the computation.
    """
    products = [
        ShardedProduct(x, rows, w, names_of_w, result)
        for w, names_of_w in zip(ws, names, strict=True)
    ]
    # Where residuals are made again, one gathering serves both products with a weight.
    keeps_gathered = is_recomputed()

    def gathered(ws):
        return [each.weight_matrix(w) for each, w in zip(products, ws, strict=True)]

    def multiplied(x, matrices):
        pairs = zip(products, matrices, strict=True)
        return [each.forward(x, matrix) for each, matrix in pairs]

    def forward(x, ws):
        matrices = gathered(ws)
        kept = matrices if keeps_gathered else ws
        return multiplied(x, matrices), (x, kept)

    def backward(residuals, grads):
        x, kept = residuals
        matrices = kept if keeps_gathered else gathered(kept)
        grads = [
            each.constrain_output(grad)
            for each, grad in zip(products, grads, strict=True)
        ]
        by_shard = {}
        for each, grad, matrix in zip(products, grads, matrices, strict=True):
            dx = each.input_gradient_by_shard(grad, matrix)
            n = len(dx)
            by_shard[n] = by_shard[n] + dx if n in by_shard else dx
        # Not jnp.sum, which would send float32 where the computation is narrower.
        sums = (jax.lax.reduce_sum(dx, (0,)) for dx in by_shard.values())
        dx = functools.reduce(jnp.add, sums)
        dx = dx.reshape(x.shape).astype(x.dtype)
        dx = constrain(dx, *rows, *products[0].contracted)
        pairs = zip(products, grads, strict=True)
        return dx, [each.weight_gradient(x, grad) for each, grad in pairs]

    # Its forward rule is not `run` itself: a rematerialisation policy would not see
    # the dots in it.
    run = jax.custom_vjp(lambda x, ws: multiplied(x, gathered(ws)))
    run.defvjp(in_this_context(forward), in_this_context(backward))
    return run(x, list(ws))


class ShardedProduct:
    """One activation times one parameter, with the gradients of both.

    Both are used as matrices: x [*row_shape, width] and w [width, columns], where
    `width` is the product of the contracted axes.
    """

    def __init__(
        self,
        x: jax.Array,
        rows: RowNames,
        w: jax.Array,
        names: AxisNames,
        result: DTypeLike | None,
    ):
        self.precision, self.rows, self.names = current_precision(), rows, names
        self.compute = jnp.dtype(self.precision.compute)
        self.result = self.compute if result is None else result
        n = x.ndim - len(rows)
        self.contracted, self.columns = names[:n], names[n:]
        self.width = math.prod(x.shape[-n:])
        self.shape, self.dtype = x.shape[:-n], w.dtype
        self.weight_shape = whole_shape(w, names)
        self.row_shape = matmul_rows(self.shape)

    def forward(
        self, x: Float[Array, "..."], w: Float[Array, "width columns"]
    ) -> Float[Array, "..."]:
        """The product, placed as the layout says."""
        y = jnp.tensordot(
            self._input_matrix(x), w, 1, preferred_element_type=self.result
        )
        y = y.reshape(*self.shape, *self.weight_shape[len(self.contracted) :])
        return self.constrain_output(y)

    def constrain_output(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """The product, or its gradient, placed as the layout says."""
        return constrain(y, *self.rows, *self.columns)

    def input_gradient_by_shard(
        self, grad: Float[Array, "..."], w: Float[Array, "width columns"]
    ) -> Float[Array, "shards ... width"]:
        """What each shard of w's first column axis adds to the gradient of x.

        The axis of shards keeps the sum over devices open until the gradients of all
        products have been added.
        """
        first, n = self.columns[0], len(self.row_shape)
        shards = pieces_along(first)
        if shards == 1:  # Nothing to keep apart; a plain product is faster.
            dx = jnp.tensordot(self._as_matrix(grad, -1), w.T, 1)[None]
        else:
            grad = self._as_matrix(grad, shards, -1)
            w = w.reshape(self.width, shards, -1)
            dx = jax.lax.dot_general(grad, w, (((n + 1,), (2,)), ((n,), (1,))))
        return constrain(dx, first, *self.rows[:n], self.contracted[0])

    def weight_gradient(
        self, x: Float[Array, "..."], grad: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """The gradient of the parameter, reduced over devices."""
        row_axes = tuple(range(len(self.row_shape)))
        dw = jnp.tensordot(
            self._input_matrix(x),
            self._as_matrix(grad, -1),
            (row_axes, row_axes),
            preferred_element_type=jnp.dtype(self.precision.reduce),
        )
        dw = dw.reshape(self.weight_shape)
        return reduce_gradient(dw, self.names).astype(self.dtype)

    def _input_matrix(self, x: jax.Array) -> jax.Array:
        """x placed so that it can be multiplied with w, as a matrix."""
        output = tuple(name for name in (*self.rows, *self.columns) if name is not ...)
        x = constrain(x, *self.rows, *self.contracted, beside=[output])
        return self._as_matrix(x, self.width)

    def weight_matrix(self, w: jax.Array) -> Float[Array, "width columns"]:
        """w gathered and cast, as a matrix."""
        return gather_value(w, self.names, self.compute).reshape(self.width, -1)

    def _as_matrix(self, x: jax.Array, *widths: int) -> jax.Array:
        """x in the compute dtype, its rows as `matmul_rows` shapes them."""
        return x.astype(self.compute).reshape(*self.row_shape, *widths)


def add_bias(x: Float[Array, "..."], b: nnx.Param) -> Float[Array, "..."]:
    """Adds a bias of x's last axes; its gradient is summed in no less than float32."""
    bias = gather(b)
    bias = bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)
    return (wide(x) + bias).astype(x.dtype)
