"""Which part of an array each device of a layout holds, as indices."""

from collections.abc import Sequence
from itertools import islice

import numpy as np

from jaxpar.partition.layout import Layout
from jaxpar.pipeline.layer_order import LAYERS, layer_order

SEQ = "seq"
Held = tuple[np.ndarray, ...]
"""Indices along each dimension of an array."""


def places(layout: Layout, most: int | None = None) -> list[tuple[int, ...]]:
    """The place of each device along each axis of the mesh; of the first `most`."""
    return [*islice(np.ndindex(*layout.sizes.values()), most)]


def held(
    layout: Layout,
    names: Sequence[str],
    shape: Sequence[int],
    which: str = "stored",
    most: int | None = None,
) -> list[Held]:
    """The indices of an array that each device holds, or each of the first `most`.

    Tokens and layers are numbered as in a text and in a model, in whatever order the
    devices store them. which: as for Layout.split.
    """
    dims = layout.split(names, which)
    orders = [_order(layout, *each) for each in zip(names, shape, strict=True)]
    found = []
    for place in places(layout, most):
        at = dict(zip(layout.sizes, place, strict=True))
        found.append(
            tuple(
                _piece(order, [(at[axis], layout.sizes[axis]) for axis in dim])
                for order, dim in zip(orders, dims, strict=True)
            )
        )
    return found


def _order(layout: Layout, name: str, size: int) -> np.ndarray:
    """The number of what stands at each place along an axis."""
    if name == SEQ:
        return layout.token_numbers(size)
    return layer_order(layout, size) if name == LAYERS else np.arange(size)


def _piece(order: np.ndarray, splits: Sequence[tuple[int, int]]) -> np.ndarray:
    """One piece of an axis, in order; splits: which of how many, the largest first."""
    for number, ways in splits:
        order = order.reshape(ways, -1)[number]
    return np.sort(order)


def spans(indices: np.ndarray) -> list[tuple[int, int]]:
    """The first and the end of each run of numbers that follow each other.

    >>> spans(np.array([0, 1, 6, 7]))
    [(0, 2), (6, 8)]
    """
    runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in runs]


def spelled(indices: np.ndarray) -> str:
    """The same as text, as in 0:2 6:8."""
    return " ".join(f"{first}:{end}" for first, end in spans(indices))
