"""Sharding constraints from inside model code, by axis names.

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
from jaxpar.partition.layout import Dims, Layout, Placed
from jaxpar.partition.manual_pieces import gather_pieces, scatter_sum
from jaxpar.partition.precision import Precision, wide_type

AxisNames = tuple[str | None, ...]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Context:
    """What is in force while a step is traced; without a layout, on a single device."""

    layout: Layout | None
    precision: Precision
    platform: str = ""
    """What the devices are: cpu, gpu or tpu; "" where no devices are chosen."""
    manual: tuple[str, ...] = ()
    """Mesh axes of which each device sees its own piece of an array as the array: their
    collectives are called by name (jaxpar.partition.own_rows)."""
    gathered: bool = False
    """Whether parameters are whole over the manual axes, however they are stored."""
    by_round: bool = False
    """Whether a circular pipeline gathers parameters once a round."""
    recomputed: bool = False
    """Whether rematerialisation makes the residuals of backward rules again."""
    microbatches: int = 1
    """Those that go through a pipeline, of the rows of all its stages."""

    @property
    def automatic(self) -> Layout | None:
        """The layout over the other mesh axes, by which the compiler splits arrays."""
        return self.layout.without(self.manual) if self.layout else None

    def manual_dims(self, names: Sequence[str | None], which: str) -> Dims:
        """The manual axes that split each dimension of an array."""
        if not self.manual or self.layout is None:
            return ((),) * len(names)
        dims = self.layout.split(names, which)
        return tuple(tuple(a for a in dim if a in self.manual) for dim in dims)

    def gathered_dims(self, names: Sequence[str | None]) -> Dims:
        """The manual axes over which a parameter's slices are brought together.

        Not those by which it is computed in slices, such as its experts; its layers
        never are: a stage of a pipeline computes its own.
        """
        stored = self.manual_dims(names, "stored")
        computed = self.manual_dims(names, "computed")
        return tuple(
            () if name == "layers" else tuple(axis for axis in have if axis not in use)
            for name, have, use in zip(names, stored, computed, strict=True)
        )


class WholeRowsNeeded(Exception):
    """Raised while a step is traced that gave each device a piece of the rows."""


# Unlike a plain context variable, it is part of jit's cache key.
_context = jax.make_user_context(default_value=None)


def enter(context: Context) -> contextlib.AbstractContextManager[Any]:
    """Puts a context in force; steps call `use_layout` or `single_device`."""
    return _context(context)


def in_this_context(f: Callable[..., T]) -> Callable[..., T]:
    """f in the context of now, for rules of derivatives, which JAX calls later."""
    context = _context.value

    def run(*args):
        with _context(context):
            return f(*args)

    return run


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
    products = jax.default_matmul_precision(context.precision.of_products)
    with enter(context), products, jax.sharding.use_abstract_mesh(mesh):
        yield


@contextlib.contextmanager
def single_device(precision: Precision | None = None) -> Iterator[None]:
    """Says explicitly that there is one device and no mesh: constraints do nothing."""
    context = Context(None, precision or Precision())
    products = jax.default_matmul_precision(context.precision.of_products)
    with enter(context), products:
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


def current_platform() -> str:
    """What the step's devices are: cpu, gpu or tpu; "" where none are known."""
    return _context.value.platform if _context.value else ""


def recomputed() -> contextlib.AbstractContextManager[Any]:
    """Says that what backward rules keep is not stored, but made again when needed."""
    context = current_context()
    return enter(dataclasses.replace(context, recomputed=True))


def is_recomputed() -> bool:
    """Whether `recomputed` is in force: gathered weights may then be kept."""
    return _context.value is not None and _context.value.recomputed


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
    layout = current_context().automatic
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
    layout = current_context().automatic
    if layout is None or over not in names:
        return x
    at, size = names.index(over), x.shape[names.index(over)]
    # In the layout for generation, batch is also split by what splits the sequence.
    (rows,) = layout.for_generation().split(("batch",), "computed")
    used = {axis for dim in layout.split(names, "computed") for axis in dim}
    free = tuple(axis for axis in rows if axis not in used)
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

    No narrower than float32 or `precision.reduce`, so that its transpose, the reduction
    of the gradient, is not either. Products with parameters call the narrower pair
    `gather_value` and `reduce_gradient` themselves.
    """
    names = axis_names(w)
    precision, value = current_precision(), w[...]
    dtype = wide_type(jnp.promote_types(precision.compute, precision.reduce))

    @jax.custom_vjp
    def gathered(w):
        return gather_value(w, names, dtype)

    def backward(_, grad):
        return (reduce_gradient(grad, names).astype(value.dtype),)

    gathered.defvjp(
        in_this_context(lambda w: (gathered(w), None)), in_this_context(backward)
    )
    return gathered(value)


def gather_value(w: jax.Array, names: AxisNames, dtype: Any) -> jax.Array:
    """Casts a weight where it is stored, then brings it to where it is computed."""
    w = constrain(w.astype(dtype), *names, which="stored")
    for i, axes in enumerate(_manual_slices(names)):
        if axes:
            w = gather_pieces(w, names, i, axes, current_context().automatic)
    return constrain(w, *names)


def reduce_gradient(grad: jax.Array, names: AxisNames) -> jax.Array:
    """The gradient of a weight in `precision.reduce`, where the weight is stored.

    Over manual axes it is reduced only if they store slices of the weight; the rest is
    added up once a step (jaxpar.partition.own_rows.reduce_once).
    """
    grad = constrain(grad.astype(current_precision().reduce), *names)
    for i, axes in enumerate(_manual_slices(names)):
        if axes:
            grad = scatter_sum(grad, names, i, axes, current_context().automatic)
    return constrain(grad, *names, which="stored")


def _manual_slices(names: AxisNames) -> Dims:
    """The manual axes over which each dimension of a parameter is in slices."""
    context = _context.value
    if context is None or context.gathered:
        return ((),) * len(names)
    return context.gathered_dims(names)


def whole_shape(w: jax.Array, names: AxisNames) -> tuple[int, ...]:
    """The shape of a weight once it is gathered."""
    sizes = _context.value.layout.sizes if any(_manual_slices(names)) else {}
    return tuple(
        size * math.prod(sizes[axis] for axis in axes)
        for size, axes in zip(w.shape, _manual_slices(names), strict=True)
    )


def matmul_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a matmul gives an activation's axes before the contracted ones.

    One axis, which is faster, unless flattening would gather a split sequence.
    """
    layout = _context.value.automatic if _context.value else None
    is_whole = layout is None or layout.split(("seq",), "computed") == ((),)
    return (math.prod(shape),) if is_whole else shape


def pieces_along(name: str | None) -> int:
    """Into how many pieces the compiler splits a named axis where it computes."""
    layout = _context.value.automatic if _context.value else None
    if layout is None:
        return 1
    (axes,) = layout.split((name,), "computed")
    return math.prod(layout.sizes[axis] for axis in axes)
