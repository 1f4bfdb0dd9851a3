"""The order in which devices hold the layers of a stack.

The layers of a circular pipeline of S stages and R rounds are cut into R x S chunks, of
which stage s computes chunk r x S + s in round r. An axis `layers` is split over the
stages in one piece each, so on devices those chunks lie beside each other: in the order
of stages, and for each stage in that of its rounds. Everywhere else, as in checkpoints,
layers stand in their natural order.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxpar.partition.layout import Layout

LAYERS = "layers"


def layer_order(layout: Layout, n_layers: int) -> np.ndarray:
    """The number of the layer at each place of a stored axis `layers`, [n_layers]."""
    return in_stored_order(np.arange(n_layers), (LAYERS,), layout)


def in_stored_order(x: Any, names: Sequence[str | None], layout: Layout) -> Any:
    """An array, of JAX or NumPy, with its layers as the devices of a layout hold them.

    names: of its axes. An array without layers, or of a layout without rounds, is
    returned as it is.
    """
    if layout.n_rounds == 1 or LAYERS not in names:
        return x
    return _swapped(x, names.index(LAYERS), layout.n_rounds, layout.n_stages)


def in_natural_order(x: Any, names: Sequence[str | None], layout: Layout) -> Any:
    """The inverse of `in_stored_order`."""
    if layout.n_rounds == 1 or LAYERS not in names:
        return x
    return _swapped(x, names.index(LAYERS), layout.n_stages, layout.n_rounds)


def on_devices(
    reorder: Callable[..., Any],
    x: jax.Array,
    names: Sequence[str | None],
    layout: Layout,
    *,
    donate: bool = False,
) -> jax.Array:
    """One of the two above, of an array that stays split over devices as it is."""
    if layout.n_rounds == 1 or LAYERS not in names:
        return x
    program = _program(reorder, tuple(names), layout, x.sharding, donate)
    # One after another: a second copy of one array at a time, and on simulated devices
    # several programs with collectives can wait for each other's threads.
    return jax.block_until_ready(program(x))


@functools.cache
def _program(
    reorder: Callable[..., Any],
    names: tuple[str | None, ...],
    layout: Layout,
    sharding: Any,
    donate: bool,
) -> Callable[[jax.Array], jax.Array]:
    return jax.jit(
        lambda x: reorder(x, names, layout),
        out_shardings=sharding,
        donate_argnums=0 if donate else (),
    )


def _swapped(x: Any, axis: int, outer: int, inner: int) -> Any:
    """Chunks along an axis, [outer, inner] of them, in the order [inner, outer]."""
    shape = x.shape
    parts = x.reshape(*shape[:axis], outer, inner, -1, *shape[axis + 1 :])
    return parts.swapaxes(axis, axis + 1).reshape(shape)
