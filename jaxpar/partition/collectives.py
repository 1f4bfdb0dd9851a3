"""Collectives by logical axis, inside `local`, which runs a function on pieces."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from jaxpar.partition.sharding import AxisNames, current_context, enter

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Collectives:
    """Collectives over the mesh axes that split one logical axis; inside `local`.

    Where no mesh axis splits it, each of them does nothing.
    """

    axes: tuple[str, ...]
    size: int = 1

    def psum(self, x: Tree) -> Tree:
        """The sum over all pieces, on each device."""
        return jax.lax.psum(x, self.axes) if self.axes else x

    def pmax(self, x: Tree) -> Tree:
        """The largest over all pieces, on each device."""
        return jax.lax.pmax(x, self.axes) if self.axes else x

    def all_gather(self, x: jax.Array, axis: int) -> jax.Array:
        """All pieces, one after another along an axis."""
        if not self.axes:
            return x
        return jax.lax.all_gather(x, self.axes, axis=axis, tiled=True)

    def all_to_all(self, x: jax.Array, split: int, join: int) -> jax.Array:
        """Splits a whole axis over the devices, and makes a split one whole."""
        if not self.axes:
            return x
        return jax.lax.all_to_all(x, self.axes, split, join, tiled=True)

    def permute(self, x: Tree) -> Tree:
        """What the device before this one has; the first one gets it from the last."""
        if not self.axes:
            return x
        ring = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, ring), x)

    def index(self) -> jax.Array:
        """Which piece of the axis this device has."""
        return jax.lax.axis_index(self.axes) if self.axes else jnp.int32(0)


def local(
    f: Callable,
    in_axes: Any,
    out_axes: Any,
    *,
    over: str,
    params: Sequence[AxisNames] = (),
) -> Callable:
    """Runs f(collectives, *pieces) on every device's own pieces of named arrays.

    in_axes and out_axes are the axis names of each array. `collectives` work over the
    mesh axes that split `over`. All arrays of the call that have a name are split
    alike along it. params: axis names of parameters, which follow the other arrays in
    the call: as they are stored; f brings them together by `gather_value`.
    """
    context = current_context()
    if context.layout is None:
        return lambda *arrays: f(Collectives(()), *arrays)

    beside = (*in_axes, *jax.tree.leaves(out_axes, is_leaf=_is_names))
    (axes,) = context.layout.split((over,), "computed", beside)
    size = math.prod(context.layout.sizes[axis] for axis in axes)
    run = functools.partial(f, Collectives(axes, size))
    layout = context.automatic
    if layout is None:
        return run
    by_hand = dataclasses.replace(context, manual=tuple(context.layout.sizes))

    def inside(*pieces):
        with enter(by_hand):
            return run(*pieces)

    return jax.shard_map(
        inside,
        in_specs=(
            *(layout.spec(names, beside=beside) for names in in_axes),
            *(layout.spec(names, "stored") for names in params),
        ),
        out_specs=jax.tree.map(
            lambda names: layout.spec(names, beside=beside), out_axes, is_leaf=_is_names
        ),
        axis_names=set(layout.sizes),
        check_vma=False,
    )


def _is_names(value: Any) -> bool:
    named = isinstance(value, tuple)
    return named and all(v is None or isinstance(v, str) for v in value)
