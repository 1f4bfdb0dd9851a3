"""Multiplying activations with a parameter, the one way it is done."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar.nn.param import wide
from jaxpar.partition.place import (
    fetch,
    gather,
    names_of,
    precision,
    seq_is_whole,
    spread,
)


def dense(spec: str, x: jax.Array, w: nnx.Param) -> jax.Array:
    """An einsum such as "BTD,DNH->BTNH" of an activation and a parameter.

    The spec's contracted letters stand last in x and first in w. The weight is
    gathered and cast here; its gradient is made, and reduced over devices, in
    `precision.reduce`, whatever the type of the computation.
    """
    left, right, out = spec.replace("->", ",").split(",")
    n = sum(letter in left for letter in right)
    if left[-n:] != right[:n] or left[:-n] + right[n:] != out:
        raise ValueError(f"dense({spec!r}): contract x's last letters with w's first.")
    return project(x, w[...], names_of(w), n)


def project(x: jax.Array, w: jax.Array, names, n: int) -> jax.Array:
    """Contracts the last n axes of x with the first n of w, as matrices."""
    kind = precision()
    compute = jnp.dtype(kind.compute)
    x_type = x.dtype
    inner, outer = w.shape[:n], w.shape[n:]
    rows, matrix = x.shape[:-n], (math.prod(inner), math.prod(outer))
    # Two dimensions are faster; to flatten a split sequence would be to gather it.
    kept = (-1,) if seq_is_whole() else rows
    over = tuple(range(len(kept)))

    def flat(x, width):
        return x.astype(compute).reshape(*kept, width)

    def weight(w):
        return fetch(w, names, compute).reshape(matrix)

    @jax.custom_vjp
    def product(x, w):
        y = jnp.tensordot(flat(x, matrix[0]), weight(w), 1)
        return y.reshape(*rows, *outer)

    def forward(x, w):
        return product(x, w), (x, w)

    def backward(kept, grad):
        x, w = kept
        grad = flat(grad, matrix[1])
        dx = jnp.tensordot(grad, weight(w).T, 1)
        dw = jnp.tensordot(
            flat(x, matrix[0]),
            grad,
            (over, over),
            preferred_element_type=jnp.dtype(kind.reduce),
        )
        dw = spread(dw.reshape(w.shape), names)
        return dx.reshape(x.shape).astype(x_type), dw

    product.defvjp(forward, backward)
    return product(x, w)


def plus(x: jax.Array, b: nnx.Param) -> jax.Array:
    """Adds a bias of x's last axes; its gradient is summed in no less than float32."""
    bias = gather(b)
    bias = bias.reshape((1,) * (x.ndim - bias.ndim) + bias.shape)
    return (wide(x) + bias).astype(x.dtype)


def lookup(w: nnx.Param, ids: jax.Array) -> jax.Array:
    """Rows ids [B, T] of a table; the gradient is summed in `precision.reduce`."""
    kind, names = precision(), names_of(w)
    shape = w.shape

    @jax.custom_vjp
    def rows(w):
        return fetch(w, names, kind.compute)[ids]

    def backward(_, grad):
        table = jnp.zeros(shape, kind.reduce).at[ids].add(grad.astype(kind.reduce))
        return (spread(table, names),)

    rows.defvjp(lambda w: (rows(w), None), backward)
    return rows(w[...])
