"""Sharding constraints from inside model code, by axis names; shard_map (`local`).

Model code names the axes of its arrays and knows no mesh. The step enters `use_layout`
once; inside it, these functions look up where the layout in force puts each name.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxpar.errors import UserError
from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.precision import Precision

AxisNames = tuple[str | None, ...]
Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True)
class Context:
    """What is in force while a step is traced; without a layout, on a single device."""

    layout: Layout | None
    precision: Precision
    platform: str = ""
    """What the devices are: cpu, gpu or tpu; "" where no devices are chosen."""


# Unlike a plain context variable, it is part of jit's cache key.
_context = jax.make_user_context(default_value=None)


@contextlib.contextmanager
def use_layout(
    where: Layout | Placed, precision: Precision | None = None
) -> Iterator[None]:
    """Puts a layout in force, for a whole step: loss, gradient and update.

    Entered only around the loss, custom backward rules would run outside it, and
    their constraints would vanish without an error.
    """
    if isinstance(where, Placed):
        # It knows the kind of device, too, and JAX compares it with the arrays'.
        layout, mesh = where.layout, where.mesh.abstract_mesh
        platform = where.platform
    else:
        layout, mesh, platform = where, where.abstract(), ""
    context = Context(layout, precision or Precision(), platform)
    with _context(context), jax.sharding.use_abstract_mesh(mesh):
        yield


@contextlib.contextmanager
def single_device(precision: Precision | None = None) -> Iterator[None]:
    """Says explicitly that there is one device and no mesh: constraints do nothing."""
    with _context(Context(None, precision or Precision())):
        yield


def current_context() -> Context:
    """The context that the step has entered.

    Raises:
      UserError: neither `use_layout` nor `single_device` has been entered.
    """
    context = _context.value
    if context is None:
        raise UserError(
            "No layout is in force: enter `use_layout(layout)` around the whole step, "
            "or `single_device()`."
        )
    return context


def current_precision() -> Precision:
    """The precision in force; float32 throughout where none has been said."""
    return _context.value.precision if _context.value else Precision()


def constrain(
    x: jax.Array,
    *names: str | None | EllipsisType,
    which: str = "computed",
    beside: Sequence[AxisNames] = (),
) -> jax.Array:
    """Places an array as the layout says for the names of its axes.

    An axis named `...` is left to the compiler. which: the rules of arrays that are
    stored, optimizer or computed. beside: the names of arrays that are used together
    with this one, so that all have to be split alike (see Rules.resolve).
    """
    layout = current_context().layout
    if layout is None:
        return x
    if len(names) != x.ndim:
        raise UserError(f"An array of shape {x.shape} was given the axes {names}.")
    dims = layout.spec([None if n is ... else n for n in names], which, beside)
    dims = [
        PartitionSpec.UNCONSTRAINED if name is ... else dim
        for name, dim in zip(names, (*dims, *(None,) * x.ndim), strict=False)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*dims))


def distribute(x: jax.Array, *names: str | None, over: str) -> jax.Array:
    """Gives each device that splits batch or sequence its own slices of axis `over`.

    For work that is done slice by slice, and that all of them would repeat otherwise.
    Of their mesh axes, the inner ones that divide the axis are taken; the rest repeat
    the work.
    """
    layout = current_context().layout
    if layout is None or over not in names:
        return x
    at, size = names.index(over), x.shape[names.index(over)]
    # In the layout for generation, batch is also split by what splits the sequence.
    (free,) = layout.for_generation().split(("batch",), "computed")
    while free and size % math.prod(layout.sizes[axis] for axis in free):
        free = free[1:]
    dims = list(layout.spec(names))
    dims[at] = free or dims[at]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*dims))


def axis_names(w: nnx.Param) -> tuple[str, ...]:
    """The names of a parameter's axes, less those that a scan has taken away."""
    names = w.out_sharding
    return tuple(names[len(names) - w.ndim :])


def gather(w: nnx.Param) -> jax.Array:
    """The value of a parameter, where it is stored in slices brought together.

    No narrower than `precision.reduce`, so that its transpose, the reduction of the
    gradient, is not either. Products with parameters call the narrower pair
    `gather_value` and `reduce_gradient` themselves.
    """
    names = axis_names(w)
    precision = current_precision()
    dtype = jnp.promote_types(precision.compute, precision.reduce)

    @jax.custom_vjp
    def gathered(w):
        return gather_value(w, names, dtype)

    def backward(_, grad):
        return (reduce_gradient(grad, names),)

    gathered.defvjp(lambda w: (gathered(w), None), backward)
    return gathered(w[...])


def gather_value(w: jax.Array, names: AxisNames, dtype: Any) -> jax.Array:
    """Casts a weight where it is stored, then brings it to where it is computed."""
    return constrain(constrain(w.astype(dtype), *names, which="stored"), *names)


def reduce_gradient(grad: jax.Array, names: AxisNames) -> jax.Array:
    """The gradient of a weight, reduced over devices to where the weight is stored."""
    precision = current_precision()
    grad = constrain(grad.astype(precision.reduce), *names)
    return constrain(grad, *names, which="stored").astype(precision.params)


def matmul_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a matmul gives an activation's axes before the contracted ones.

    One axis, which is faster, unless flattening would gather a split sequence.
    """
    layout = _context.value.layout if _context.value else None
    is_whole = layout is None or layout.split(("seq",), "computed") == ((),)
    return (math.prod(shape),) if is_whole else shape


def pieces_along(name: str | None) -> int:
    """Into how many pieces a named axis of a parameter is split where it computes."""
    layout = _context.value.layout if _context.value else None
    if layout is None:
        return 1
    (axes,) = layout.split((name,), "computed")
    return math.prod(layout.sizes[axis] for axis in axes)


def token_numbers(length: int) -> jax.Array:
    """Which token of a row stands at each place, [length]; see Layout.token_numbers."""
    layout = current_context().layout
    if layout is None:
        return jnp.arange(length)
    return jnp.asarray(layout.token_numbers(length))


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


def local(f: Callable, in_axes: Any, out_axes: Any, *, over: str) -> Callable:
    """Runs f(collectives, *pieces) on every device's own pieces of named arrays.

    in_axes and out_axes are the axis names of each array. `collectives` work over the
    mesh axes that split `over`. All arrays of the call that have a name are split
    alike along it.
    """
    layout = current_context().layout
    if layout is None:
        return lambda *arrays: f(Collectives(()), *arrays)

    beside = (*in_axes, *jax.tree.leaves(out_axes, is_leaf=_is_names))
    (axes,) = layout.split((over,), "computed", beside)
    collectives = Collectives(axes, math.prod(layout.sizes[axis] for axis in axes))
    return jax.shard_map(
        lambda *pieces: f(collectives, *pieces),
        in_specs=tuple(layout.spec(names, beside=beside) for names in in_axes),
        out_specs=jax.tree.map(
            lambda names: layout.spec(names, beside=beside), out_axes, is_leaf=_is_names
        ),
        check_vma=False,
    )


def _is_names(value: Any) -> bool:
    named = isinstance(value, tuple)
    return named and all(v is None or isinstance(v, str) for v in value)
