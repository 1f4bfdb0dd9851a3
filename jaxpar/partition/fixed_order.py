"""Sums over the rows of a batch in one fixed order, on any number of devices.

Addition in floating point is not associative, so a sum has the same bits only if it is
made in the same order. Here it is a binary tree over equal parts of the batch, whose
lower levels are inside a device if there are fewer devices than parts.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxpar.errors import UserError
from jaxpar.partition import cluster
from jaxpar.partition.layout import Layout
from jaxpar.tables import say_once

Tree = TypeVar("Tree")


def check_exact(layout: Layout, parts: int, microbatches: int, rows: int) -> None:
    """Refuses what cannot give the same bits on another number of devices.

    Raises:
      UserError: the layout splits more than rows of the batch, or the parts are no
        power of 2, too few for devices and microbatches, or do not divide the rows.
    """
    field, n = f"exact={parts}", layout.n_devices
    if others := {*layout.sizes} - {"replica", "data"}:
        raise UserError(
            f"{field}: layout {layout.spelling} splits sums over {', '.join(others)}, "
            f"in an order of its own; write --layout data={n}, or replica= beside it."
        )
    if layout.optimizer.embed:
        raise UserError(
            f"{field}: layout {layout.spelling} keeps slices of the optimizer's state, "
            "over which norms are summed in an order of their own; write --layout "
            f"data={n}."
        )
    if parts & (parts - 1):
        near = 2 ** (parts.bit_length() - 1)
        raise UserError(f"{field} is no power of 2, such as {near} and {2 * near}.")
    if parts % (n * microbatches):
        least = 2 ** math.ceil(math.log2(n * microbatches))
        raise UserError(
            f"{field} parts of a batch must be a power of 2 that {n} devices x "
            f"{microbatches} microbatches divide, such as {least}; layouts and "
            "microbatches have to be powers of 2, too."
        )
    if rows % parts:
        below = rows - rows % parts
        raise UserError(
            f"{field}: batch_size={rows} is not divisible by {parts}; the nearest "
            f"legal sizes are {below or parts} and {(below or parts) + parts}."
        )


def exact_or_off(layout: Layout, parts: int, rows: int) -> int:
    """The parts where a layout can add them up in their order, else 0, said aloud."""
    if not parts:
        return 0
    try:
        check_exact(layout, parts, 1, rows)
    except UserError as error:
        say_once(
            f"Sums are added up in an order of the layout's own here: {error}",
            is_first=cluster.is_first(),
        )
        return 0
    return parts


def compiler_options(platform: str) -> dict[str, str]:
    """Options of jax.jit with which a program has the same bits on one device, too.

    On CPUs the library YNNPACK sums in the order in which the compiler happens to list
    dimensions, which differs where nothing is partitioned.
    """
    reductions = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
    return reductions if platform == "cpu" else {}


def sum_of_parts(
    f: Callable[[Any], Tree], rows: Any, n: int, *, known_at_run: jax.Array
) -> Tree:
    """The sum of f(part) over n equal parts of rows, one after another, in pairs.

    Of each level of the tree one sum is held until its other half is there. The loop is
    the same program for any n: a compiler that knows how often it runs unrolls it, or
    takes what it computes out of it, and fuses that otherwise, with other bits. So the
    number of turns depends on known_at_run: a floating-point array that is not NaN,
    such as a parameter. Of a single part there is a copy, which is not computed.
    """
    rows = jax.tree.map(lambda x: x.reshape(n, x.shape[0] // n, *x.shape[1:]), rows)
    if n == 1:  # Of a single part, what follows from its rows would leave the loop.
        rows = jax.tree.map(lambda x: jnp.concatenate([x, x]), rows)
    shapes = jax.eval_shape(f, jax.tree.map(lambda x: x[0], rows))
    levels = n.bit_length()
    zeros = jax.tree.map(lambda s: jnp.zeros((levels, *s.shape), s.dtype), shapes)

    def add(i: jax.Array, sums: Any) -> Any:
        def is_second_half(level_and_sum):
            return (i >> level_and_sum[0]) & 1 == 1

        def with_first_half(level_and_sum):
            level, found = level_and_sum
            return level + 1, jax.tree.map(lambda s, x: s[level] + x, sums, found)

        found = f(jax.tree.map(lambda x: x[i], rows))
        level, found = jax.lax.while_loop(
            is_second_half, with_first_half, (jnp.int32(0), found)
        )
        return jax.tree.map(lambda s, x: s.at[level].set(x), sums, found)

    one = known_at_run.reshape(-1)[0]
    times = n + (one != one).astype(jnp.int32)
    sums = jax.lax.fori_loop(0, times, add, zeros)
    return jax.tree.map(lambda s: s[levels - 1], sums)


def sum_over_devices(tree: Tree, axes: tuple[str, ...], n: int) -> Tree:
    """The sum of n devices' trees, in pairs by their order, on each of them.

    A device adds up one slice and gets the others: it sends 2 (n - 1) / n of the bytes,
    as little as any all-reduce.
    """

    def one(x: jax.Array) -> jax.Array:
        flat = x.reshape(-1)
        flat = jnp.pad(flat, (0, -flat.size % n)).reshape(n, -1)
        slices = jax.lax.all_to_all(flat, axes, 0, 0, tiled=True)
        while len(slices) > 1:
            slices = slices[0::2] + slices[1::2]
        whole = jax.lax.all_gather(slices[0], axes, tiled=True)
        return whole[: x.size].reshape(x.shape)

    return jax.tree.map(one, tree) if n > 1 else tree
