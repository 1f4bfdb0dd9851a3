"""Multiplying activations with a parameter, the one way it is done."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar.errors import UserError
from jaxpar.partition.precision import wide
from jaxpar.partition.sharding import (
    axis_names,
    constrain,
    current_precision,
    gather,
    gather_value,
    matmul_rows,
    pieces_along,
    reduce_gradient,
)

# What the letters of an activation's rows are named; others are the compiler's.
ROWS = {"B": "batch", "T": "seq"}


def dense(spec: str, x: jax.Array, w: nnx.Param) -> jax.Array:
    """An einsum such as "BTD,DNH->BTNH" of an activation and a parameter.

    The spec's contracted letters stand last in x and first in w; B and T are the batch
    and the sequence. The weight is gathered and cast here; its gradient is made, and
    reduced over devices, in `precision.reduce`, whatever the type of the computation.
    """
    (y,) = dense_each(x, (spec, w))
    return y


def dense_each(x: jax.Array, *products: tuple[str, nnx.Param]) -> list[jax.Array]:
    """`dense` of one activation with several parameters: pairs (spec, w).

    Its gradient is summed over them before it is reduced over devices: once, and not
    once for each.
    """
    rows = [_rows(spec) for spec, _ in products]
    if len(set(rows)) > 1:
        raise UserError("dense_each: products contract different letters of x.")
    ws = [w[...] for _, w in products]
    return project(x, rows[0], ws, [axis_names(w) for _, w in products])


def _rows(spec: str) -> tuple:
    """The names of the axes of x that an einsum leaves alone."""
    left, right, out = spec.replace("->", ",").split(",")
    n = sum(letter in left for letter in right)
    if left[-n:] != right[:n] or left[:-n] + right[n:] != out:
        raise UserError(f"dense({spec!r}): contract x's last letters with w's first.")
    return tuple(ROWS.get(letter, ...) for letter in left[:-n])


def project(x: jax.Array, rows, ws, names) -> list[jax.Array]:
    """Contracts the axes of x behind `rows` with the first of each of ws, as matrices.

    rows are names of axes of x, names those of each of ws.
    """
    by = [ShardedProduct(x, rows, each) for each in names]

    def forward(x, ws):
        return [each.forward(x, w) for each, w in zip(by, ws, strict=True)]

    def backward(saved, grads):
        x, ws = saved
        grads = [each.placed(grad) for each, grad in zip(by, grads, strict=True)]
        shares = {}
        for each, grad, w in zip(by, grads, ws, strict=True):
            share = each.share(grad, w)
            n = len(share)
            shares[n] = shares[n] + share if n in shares else share
        dx = functools.reduce(jnp.add, (each.sum(0) for each in shares.values()))
        dx = constrain(dx.reshape(x.shape).astype(x.dtype), *rows, *by[0].inner)
        return dx, [g.own(x, *of) for g, *of in zip(by, grads, ws, strict=True)]

    products = jax.custom_vjp(forward)
    # Not `products` itself: a rematerialisation policy would not see the dots in it.
    products.defvjp(lambda x, ws: (forward(x, ws), (x, ws)), backward)
    return products(x, list(ws))


class ShardedProduct:
    """One activation times one parameter, and what either's gradient needs."""

    def __init__(self, x: jax.Array, rows: tuple, names: tuple):
        self.kind, self.rows, self.names = current_precision(), rows, names
        self.compute = jnp.dtype(self.kind.compute)
        n = x.ndim - len(rows)
        self.inner, self.outer = names[:n], names[n:]
        self.width = math.prod(x.shape[-n:])
        self.shape = x.shape[:-n]
        self.kept = matmul_rows(self.shape)

    def forward(self, x, w):
        y = jnp.tensordot(self._used(x), self._weight(w), 1)
        return self.placed(y.reshape(*self.shape, *w.shape[len(self.inner) :]))

    def placed(self, y):
        return constrain(y, *self.rows, *self.outer)

    def share(self, grad, w):
        """[shards, rows, width]: what each shard of w's outer axis adds to dx.

        With an axis of its own, it is not reduced before all parameters' are added.
        """
        first, n = self.outer[0], len(self.kept)
        shards, w = pieces_along(first), self._weight(w)
        if shards == 1:  # Nothing to keep apart; a plain product is faster.
            dx = jnp.tensordot(self._flat(grad, -1), w.T, 1)[None]
        else:
            grad, w = self._flat(grad, shards, -1), w.reshape(self.width, shards, -1)
            dx = jax.lax.dot_general(grad, w, (((n + 1,), (2,)), ((n,), (1,))))
        return constrain(dx, first, *self.rows[:n], self.inner[0])

    def own(self, x, grad, w):
        """The gradient of the parameter."""
        over = tuple(range(len(self.kept)))
        dw = jnp.tensordot(
            self._used(x),
            self._flat(grad, -1),
            (over, over),
            preferred_element_type=jnp.dtype(self.kind.reduce),
        )
        return reduce_gradient(dw.reshape(w.shape), self.names)

    def _used(self, x):
        """x where it meets the parameter, as matrix rows."""
        beside = [tuple(name for name in (*self.rows, *self.outer) if name is not ...)]
        x = constrain(x, *self.rows, *self.inner, beside=beside)
        return self._flat(x, self.width)

    def _weight(self, w):
        return gather_value(w, self.names, self.compute).reshape(self.width, -1)

    def _flat(self, x, *widths):
        return x.astype(self.compute).reshape(*self.kept, *widths)


def add_bias(x: jax.Array, b: nnx.Param) -> jax.Array:
    """Adds a bias of x's last axes; its gradient is summed in no less than float32."""
    bias = gather(b)
    bias = bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)
    return (wide(x) + bias).astype(x.dtype)
