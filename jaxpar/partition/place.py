"""The doors between names and devices, through which all model code passes."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from types import EllipsisType

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxpar.partition.layout import Layout, Placed


@dataclasses.dataclass(frozen=True)
class Precision:
    """In which type parameters rest, matmuls run, gradients are reduced."""

    params: str = "float32"
    compute: str = "float32"
    reduce: str = "float32"

    def __post_init__(self):
        for field in dataclasses.fields(self):
            kind = getattr(self, field.name)
            if kind not in ("bfloat16", "float16", "float32", "float64"):
                raise ValueError(
                    f"Precision {field.name}={kind!r}; allowed are bfloat16, float16, "
                    "float32 and float64."
                )


@dataclasses.dataclass(frozen=True)
class Frame:
    """What the doors read: a layout (None: one device, said aloud) and types."""

    layout: Layout | None
    precision: Precision
    microbatches: int = 1


# Part of jit's cache key, unlike a plain context variable.
_frame = jax.make_user_context(default_value=None)


@contextlib.contextmanager
def under(
    where: Layout | Placed, precision: Precision | None = None, microbatches: int = 1
) -> Iterator[None]:
    """Says the layout for a whole step: loss, gradient and update.

    Entered only around the loss, custom backward rules would run outside it, and
    their constraints would vanish in silence.
    """
    if isinstance(where, Placed):
        # It knows the kind of device, too, and JAX compares it with the arrays'.
        layout, mesh = where.layout, where.mesh.abstract_mesh
    else:
        layout, mesh = where, where.abstract()
    frame = Frame(layout, precision or Precision(), microbatches)
    with _frame(frame), jax.sharding.use_abstract_mesh(mesh):
        yield


@contextlib.contextmanager
def alone(precision: Precision | None = None) -> Iterator[None]:
    """Says aloud that there is one device and no mesh: the doors let pass."""
    with _frame(Frame(None, precision or Precision())):
        yield


def current() -> Frame:
    """The frame that the step has entered."""
    frame = _frame.value
    if frame is None:
        raise ValueError(
            "No layout is in force: enter `under(layout)` around the whole step, or "
            "`alone()` for one device."
        )
    return frame


def precision() -> Precision:
    """The precision in force; single precision where nothing was said."""
    return _frame.value.precision if _frame.value else Precision()


def constrain(
    x: jax.Array, *names: str | None | EllipsisType, which="computed", beside=()
) -> jax.Array:
    """Places an array as the layout says for the names of its axes.

    An axis named `...` stays where the compiler puts it. beside: names of arrays that
    are used together with this one, so that they must be split alike (Rules.resolve).
    """
    layout = current().layout
    if layout is None:
        return x
    if len(names) != x.ndim:
        raise ValueError(f"Array of shape {x.shape} was given the axes {names}.")
    dims = layout.spec([None if n is ... else n for n in names], which, beside)
    dims = [
        PartitionSpec.UNCONSTRAINED if name is ... else dim
        for name, dim in zip(names, (*dims, *(None,) * x.ndim), strict=False)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*dims))


def share_out(x: jax.Array, *names: str | None, over: str) -> jax.Array:
    """Gives each device that splits batch or sequence its own slices of axis `over`.

    For work done slice by slice, which all of them would repeat otherwise. Of their
    mesh axes, the inner ones that divide the axis are taken; the rest repeat it.
    """
    layout = current().layout
    if layout is None or over not in names:
        return x
    at, size = names.index(over), x.shape[names.index(over)]
    # Where rows are whole, batch is split by what else splits the sequence.
    (free,) = layout.for_generation().split(("batch",), "computed")
    while free and size % math.prod(layout.sizes[axis] for axis in free):
        free = free[1:]
    dims = list(layout.spec(names))
    dims[at] = free or dims[at]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*dims))


def names_of(w) -> tuple[str, ...]:
    """The axis names that a parameter carries, less those that a scan took away."""
    names = w.out_sharding
    return tuple(names[len(names) - w.ndim :])


def gather(w) -> jax.Array:
    """A parameter's way into a computation, whole where it is computed.

    No narrower than `precision.reduce`, so that the transpose, which is the reduction
    of its gradient, is not either; `fetch` and `spread` are the narrow way.
    """
    names = names_of(w)
    kind = jnp.promote_types(precision().compute, precision().reduce)

    @jax.custom_vjp
    def door(w):
        return fetch(w, names, kind)

    door.defvjp(lambda w: (door(w), None), lambda _, grad: (spread(grad, names),))
    return door(w[...])


def fetch(w: jax.Array, names, dtype) -> jax.Array:
    """Casts where the weight is stored, then brings it to where it is computed."""
    return constrain(constrain(w.astype(dtype), *names, which="stored"), *names)


def spread(grad: jax.Array, names) -> jax.Array:
    """A weight's gradient, reduced to where the weight is stored."""
    kind = precision()
    grad = constrain(grad.astype(kind.reduce), *names)
    return constrain(grad, *names, which="stored").astype(kind.params)


def as_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes of an activation in front of those that a matmul contracts, as it takes
    them: one alone, which is faster, but where that would gather a split sequence."""
    layout = _frame.value.layout if _frame.value else None
    whole = layout is None or layout.split(("seq",), "computed") == ((),)
    return (math.prod(shape),) if whole else shape


def ways(name: str | None) -> int:
    """Into how many pieces a named axis of a parameter is split where it computes."""
    layout = _frame.value.layout if _frame.value else None
    if layout is None:
        return 1
    (axes,) = layout.split((name,), "computed")
    return math.prod(layout.sizes[axis] for axis in axes)


def order(length: int) -> jax.Array:
    """Which token of a row stands where, [length]: see Layout.order."""
    layout = current().layout
    return jnp.arange(length) if layout is None else jnp.asarray(layout.order(length))


@dataclasses.dataclass(frozen=True)
class Together:
    """Collectives over the mesh axes that split one logical axis; inside `local`."""

    axes: tuple[str, ...]
    size: int = 1

    def psum(self, x):
        return jax.lax.psum(x, self.axes) if self.axes else x

    def pmax(self, x):
        return jax.lax.pmax(x, self.axes) if self.axes else x

    def all_gather(self, x, axis: int):
        if not self.axes:
            return x
        return jax.lax.all_gather(x, self.axes, axis=axis, tiled=True)

    def all_to_all(self, x, split: int, join: int):
        """Splits a whole axis over the devices, and makes a split one whole."""
        if not self.axes:
            return x
        return jax.lax.all_to_all(x, self.axes, split, join, tiled=True)

    def permute(self, x):
        """What the device before has; the first one gets it from the last."""
        if not self.axes:
            return x
        ring = [(i, (i + 1) % self.size) for i in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axes, ring), x)

    def index(self) -> jax.Array:
        """Which piece of the axis this device has."""
        return jax.lax.axis_index(self.axes) if self.axes else jnp.int32(0)


def local(f: Callable, in_axes, out_axes, *, over: str) -> Callable:
    """Runs f(together, *pieces) on every device's own pieces of named arrays.

    in_axes and out_axes are names per array; `together` reduces over the mesh axes
    that split `over`, and is the identity where that axis is whole. All arrays of the
    call that have a name are split alike along it.
    """
    layout = current().layout
    if layout is None:
        return lambda *arrays: f(Together(()), *arrays)

    def is_names(value) -> bool:
        named = isinstance(value, tuple)
        return named and all(v is None or isinstance(v, str) for v in value)

    beside = (*in_axes, *jax.tree.leaves(out_axes, is_leaf=is_names))
    (axes,) = layout.split((over,), "computed", beside)
    together = Together(axes, math.prod(layout.sizes[axis] for axis in axes))
    return jax.shard_map(
        lambda *pieces: f(together, *pieces),
        in_specs=tuple(layout.spec(names, beside=beside) for names in in_axes),
        out_specs=jax.tree.map(
            lambda names: layout.spec(names, beside=beside),
            out_axes,
            is_leaf=is_names,
        ),
        check_vma=False,
    )
