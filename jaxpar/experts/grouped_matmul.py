"""Products by groups: each expert's rows times its own matrix, by kind of device."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jaxpar.partition.sharding import (
    AxisNames,
    current_context,
    current_precision,
    gather_value,
    in_this_context,
    is_recomputed,
    reduce_gradient,
)

MOST_ROWS_OF_A_TILE = 128


@dataclasses.dataclass(frozen=True)
class GroupedMatmul:
    """How products by groups are computed; rows after the last group's give 0."""

    name: str
    """What it is called where the choice is said."""
    rows: Callable[[jax.Array, jax.Array, jax.Array, DTypeLike], jax.Array]
    """(x [M, K], w [G, K, N], sizes [G], type) -> [M, N]: each group's rows times its
    matrix."""
    weights: Callable[[jax.Array, jax.Array, jax.Array, DTypeLike], jax.Array]
    """(x [M, K], y [M, N], sizes [G], type) -> [G, K, N]: each group's x^T y."""


def _in_tiles(
    sizes: Int[Array, " G"], rows: int, visit: Callable[..., Any], start: Any
) -> Any:
    """Folds visit(carry, group, first row, rows that count) over tiles of all groups.

    A tile has rows of one group. As many tiles are visited as the groups have, known
    only when it runs: sizes that differ cost no products with padding but each group's
    last tile.
    """
    tile = tile_rows(rows, len(sizes))
    tiles = jnp.cumsum(-(-sizes // tile))
    ends = jnp.cumsum(sizes)

    def body(i, carry):
        group = jnp.searchsorted(tiles, i, side="right")
        first_tile = tiles[group] - (-(-sizes[group] // tile))
        first = ends[group] - sizes[group] + (i - first_tile) * tile
        return visit(carry, group, first, jnp.minimum(tile, ends[group] - first))

    return jax.lax.fori_loop(0, tiles[-1], body, start)


def tile_rows(rows: int, groups: int) -> int:
    """Rows of a tile: a power of 2, near what a group has on average."""
    mean = max(8, rows // groups)
    return min(MOST_ROWS_OF_A_TILE, 1 << (mean - 1).bit_length())


def _rows_in_tiles(x, w, sizes, dtype):
    tile, n = tile_rows(len(x), len(w)), len(x)
    # A tile may begin at the last row.
    x = jnp.pad(x, ((0, tile), (0, 0)))

    def visit(y, group, first, _):
        part = jax.lax.dynamic_slice_in_dim(x, first, tile)
        found = jnp.dot(part, w[group], preferred_element_type=dtype)
        # What it computes of rows that follow, the next tile computes again.
        return jax.lax.dynamic_update_slice_in_dim(y, found, first, 0)

    y = jnp.zeros((n + tile, w.shape[2]), dtype)
    y = _in_tiles(sizes, n, visit, y)[:n]
    return jnp.where(jnp.arange(n)[:, None] < jnp.sum(sizes), y, 0)


def _weights_in_tiles(x, y, sizes, dtype):
    tile, n = tile_rows(len(x), len(sizes)), len(x)
    x, y = (jnp.pad(a, ((0, tile), (0, 0))) for a in (x, y))

    def visit(w, group, first, count):
        part, grad = (jax.lax.dynamic_slice_in_dim(a, first, tile) for a in (x, y))
        part = jnp.where(jnp.arange(tile)[:, None] < count, part, 0)
        found = jnp.dot(part.T, grad, preferred_element_type=dtype)
        return w.at[group].add(found)

    w = jnp.zeros((len(sizes), x.shape[1], y.shape[1]), dtype)
    return _in_tiles(sizes, n, visit, w)


def _rows_ragged(x, w, sizes, dtype):
    y = jax.lax.ragged_dot(x, w, sizes, preferred_element_type=jnp.dtype(dtype))
    return jnp.where(jnp.arange(len(x))[:, None] < jnp.sum(sizes), y, 0)


def _weights_ragged(x, y, sizes, dtype):
    numbers = jax.lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(([0], [0]), ([], [])),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[],
    )
    return jax.lax.ragged_dot_general(
        x, y, sizes, numbers, preferred_element_type=jnp.dtype(dtype)
    )


def _rows_equal(x, w, sizes, dtype):
    x = x.reshape(len(w), -1, x.shape[1])
    y = jnp.einsum("gmk,gkn->gmn", x, w, preferred_element_type=dtype)
    return y.reshape(-1, w.shape[2])


def _weights_equal(x, y, sizes, dtype):
    x, y = (a.reshape(len(sizes), -1, a.shape[1]) for a in (x, y))
    return jnp.einsum("gmk,gmn->gkn", x, y, preferred_element_type=dtype)


TILES = GroupedMatmul("tiles of one expert's rows", _rows_in_tiles, _weights_in_tiles)
RAGGED = GroupedMatmul("jax.lax.ragged_dot", _rows_ragged, _weights_ragged)
TABLE = {"cpu": TILES, "gpu": TILES, "tpu": RAGGED, "": RAGGED}
"""By kind of device, as Placed.platform has them; "" is where none is chosen, and
products are only counted. In jax 0.10 and 0.11 `ragged_dot` multiplies all rows with
all experts on CPUs and GPUs; on TPUs it is an instruction."""


EQUAL = GroupedMatmul("one batched product", _rows_equal, _weights_equal)
"""Of groups that all have as many rows, as slots have."""


def grouped_matmul() -> GroupedMatmul:
    """The one for the devices of the step; of a kind that is unknown, tiles."""
    return TABLE.get(current_context().platform, TILES)


def matmul_said(platform: str, *, has_slots: bool) -> str:
    """A line on what computes the products of experts on a kind of device, and why."""
    if has_slots:
        return f"Experts' products: {EQUAL.name}, of all slots."
    matmul = TABLE.get(platform, TILES)
    why = (
        ""
        if matmul is RAGGED
        else (f"; on {platform} {RAGGED.name} would multiply all rows with all experts")
    )
    return f"Experts' products: {matmul.name}{why}."


def project_groups(
    x: Float[Array, "M K"],
    sizes: Int[Array, " G"],
    ws: Sequence[Float[Array, "G K N"]],
    names: Sequence[AxisNames],
    matmul: GroupedMatmul,
) -> list[Float[Array, "M N"]]:
    """Each group's rows times its own matrix in each of ws.

    x: rows in the order of their groups. sizes: rows of each group; those after the
    last one's give 0. names: axis names of each of ws, which are parameters as this
    device stores them: gathered and cast here, their gradients computed and reduced in
    `precision.reduce`. For use in `local`, where a device has all axes by hand.
    """
    precision = current_precision()
    compute, keeps_gathered = jnp.dtype(precision.compute), is_recomputed()
    dtypes = [w.dtype for w in ws]

    def gathered(ws):
        pairs = zip(ws, names, strict=True)
        return [gather_value(w, name, compute) for w, name in pairs]

    def multiplied(x, sizes, matrices):
        return [matmul.rows(x.astype(compute), w, sizes, compute) for w in matrices]

    def forward(x, sizes, ws):
        matrices = gathered(ws)
        kept = matrices if keeps_gathered else ws
        return multiplied(x, sizes, matrices), (x, sizes, kept)

    def backward(residuals, grads):
        x, sizes, kept = residuals
        matrices = kept if keeps_gathered else gathered(kept)
        turned = (w.swapaxes(1, 2) for w in matrices)
        pairs = [*zip(grads, turned, strict=True)]
        parts = (matmul.rows(grad, w, sizes, compute) for grad, w in pairs)
        dx = functools.reduce(jnp.add, parts)
        dws = [
            reduce_gradient(
                matmul.weights(x.astype(compute), grad, sizes, precision.reduce), name
            ).astype(dtype)
            for grad, name, dtype in zip(grads, names, dtypes, strict=True)
        ]
        return dx.astype(x.dtype), None, dws

    run = jax.custom_vjp(lambda x, sizes, ws: multiplied(x, sizes, gathered(ws)))
    run.defvjp(in_this_context(forward), in_this_context(backward))
    return run(x, sizes, list(ws))
