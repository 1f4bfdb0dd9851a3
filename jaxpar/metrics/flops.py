"""Model FLOPs of a function, and of a training step, counted in jaxprs."""

import functools
import math
import operator
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import PartitionSpec

from jaxpar.tree import path_of

# Of which parameters a value depends: a set of these bits; 0 is of none.
FROZEN, TRAINED = 1, 2


def model_flops(fn: Callable, *args: Any) -> int:
    """FLOPs of all matrix products and convolutions in one call of fn(*args).

    A product in a scan of length n counts n times; of a `cond`, the branch with most
    FLOPs counts. Only shapes are read, so args may be ShapeDtypeStructs, and nothing
    is compiled. What a library call does, such as cuDNN's attention, is missed.

    Warns about a product in a `while` loop, whose length is unknown before it runs: it
    counts once.
    """
    jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
    return _walk(jaxpr, [0] * len(jaxpr.invars))[0].forward


def training_flops(
    forward: Callable, params: Any, *args: Any, frozen: Collection[str] = ()
) -> int:
    """FLOPs of forward(params, *args) and of the gradient of its trained parameters.

    frozen: paths of the parameters that get no gradient. A product counts once for the
    forward pass, and once more for each of its two operands through which a gradient
    flows to a trained parameter. With nothing frozen these are three times as many as
    `model_flops` counts, by convention (Chowdhery et al., 2022, appendix B): a product
    with an operand that depends on no parameter, as in the first layer, is no
    exception. Rematerialisation is not counted; an embedding's lookup is no product.
    In a scan over layers all iterations count alike, as they do in its gradient.
    """
    closed = jax.make_jaxpr(forward)(params, *args)
    paths = [path_of(keys) for keys, _ in jax.tree.leaves_with_path(params)]
    kinds = [FROZEN if path in frozen else TRAINED for path in paths]
    kinds += [0] * (len(closed.jaxpr.invars) - len(kinds))
    return _walk(closed.jaxpr, kinds)[0].total


class _Count(NamedTuple):
    """FLOPs of a forward pass, and of its gradient."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        return self.forward + self.backward

    def times(self, n: int) -> "_Count":
        return _Count(n * self.forward, n * self.backward)


def _sum(counts: Iterable[_Count]) -> _Count:
    return _Count(*map(sum, zip(_Count(), *counts, strict=True)))


def _walk(jaxpr: core.Jaxpr, kinds: Sequence[int]) -> tuple[_Count, list[int]]:
    """What a jaxpr counts, and the kinds of its results.

    kinds: of its arguments. What a value depends on is the union over the operands of
    its equation; gradients flow through no integers.
    """
    known: dict[Any, int] = dict(zip(jaxpr.invars, kinds, strict=True))

    def kind_of(var: Any) -> int:
        return 0 if isinstance(var, core.Literal) else known.get(var, 0)

    counts = []
    for eqn in jaxpr.eqns:
        count, out = _walk_equation(eqn, [kind_of(var) for var in eqn.invars])
        counts.append(count)
        for var, kind in zip(eqn.outvars, out, strict=True):
            known[var] = kind if _has_gradient(var) else 0
    return _sum(counts), [kind_of(var) for var in jaxpr.outvars]


def _walk_equation(
    eqn: core.JaxprEqn, kinds: Sequence[int]
) -> tuple[_Count, Sequence[int]]:
    name, params = eqn.primitive.name, eqn.params
    everything = [_union(kinds)] * len(eqn.outvars)
    if name == "stop_gradient":
        return _Count(), [0] * len(eqn.outvars)
    if name in PRODUCTS:
        forward = PRODUCTS[name](eqn)
        return _Count(forward, forward * _n_gradients(*kinds[:2])), everything
    if name == "scan":
        count, out = _walk_scan(eqn, kinds)
        return count.times(params["length"]), out
    inner = [
        _walk(jaxpr, _kinds_inside(name, jaxpr, kinds))
        for jaxpr in inner_jaxprs(params)
    ]
    is_call = name in CALLS and len(inner) == 1
    out = inner[0][1] if is_call else everything
    counts = [count for count, _ in inner]
    if not any(count.forward for count in counts):
        return _Count(), out
    if name == "cond":
        return max(counts, key=lambda count: count.total), out
    count = _sum(counts)
    if name == "while":
        warnings.warn(
            f"A while loop has {count.forward:,} FLOPs per iteration, of which one is "
            "counted. Those of a scan, or a fori_loop of fixed length, all are.",
            stacklevel=2,
        )
    return count.times(_repetitions(name, params)), out


def _walk_scan(
    eqn: core.JaxprEqn, kinds: Sequence[int]
) -> tuple[_Count, Sequence[int]]:
    """One iteration of a scan, whose carry depends on all that it ever depends on."""
    jaxpr, carry = eqn.params["jaxpr"].jaxpr, carry_of(eqn)
    inside = list(kinds)
    while True:
        count, out = _walk(jaxpr, inside)
        carried = [a | b for a, b in zip(inside[carry], out, strict=False)]
        if carried == inside[carry]:
            return count, out
        inside[carry] = carried


def carry_of(eqn: core.JaxprEqn) -> slice:
    """Which arguments of a scan are its carry: those before what it walks along.

    By their shapes, since names of its parameters differ between versions of JAX: what
    it walks along, or stacks, has an axis more outside than inside.
    """
    jaxpr = eqn.params["jaxpr"].jaxpr

    def as_inside(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        pairs = zip(outside, inside, strict=True)
        return sum(len(_shape(a)) == len(_shape(b)) for a, b in pairs)

    last = as_inside(eqn.invars, jaxpr.invars)
    return slice(last - as_inside(eqn.outvars, jaxpr.outvars), last)


def _kinds_inside(name: str, jaxpr: core.Jaxpr, kinds: Sequence[int]) -> list[int]:
    """The kinds of an inner jaxpr's arguments: the equation's own, or their union."""
    if name in CALLS and len(jaxpr.invars) == len(kinds):
        return list(kinds)
    return [_union(kinds)] * len(jaxpr.invars)


def _union(kinds: Iterable[int]) -> int:
    return functools.reduce(operator.or_, kinds, 0)


def _n_gradients(lhs: int, rhs: int) -> int:
    """Of how many operands of a product the gradient is computed.

    An operand that depends on no parameter goes with the other one.
    """
    if FROZEN not in (lhs, rhs):
        return 2
    return sum(bool(kind & TRAINED) for kind in (lhs, rhs))


def _has_gradient(var: Any) -> bool:
    dtype = getattr(var.aval, "dtype", None)
    return dtype is None or jnp.issubdtype(dtype, jnp.inexact)


def _repetitions(name: str, params: dict[str, Any]) -> int:
    """How often an equation runs the jaxprs in it."""
    if name == "shard_map":
        # Inside, shapes are those of one shard. Along a mesh axis that splits no input
        # all devices do the same work, which counts once.
        split = {axis for spec in params["in_specs"] for axis in _mesh_axes(spec)}
        return math.prod(params["mesh"].shape[axis] for axis in split)
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _mesh_axes(spec: PartitionSpec) -> Iterator[str]:
    """The mesh axes in a PartitionSpec."""
    for entry in spec:
        if entry is not None:
            yield from (entry if isinstance(entry, tuple) else (entry,))


def inner_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The jaxprs in an equation's parameters."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, core.Jaxpr):
                yield item


def _shape(var: Any) -> tuple[int, ...]:
    return var.aval.shape


def _dot(eqn: core.JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    lhs = _shape(eqn.invars[0])
    return 2 * math.prod(_shape(eqn.outvars[0])) * _size(lhs, contracted)


def _ragged_dot(eqn: core.JaxprEqn) -> int:
    """Each row of lhs is multiplied with one group of rhs only."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    lhs, rhs = (_shape(var) for var in eqn.invars[:2])
    others = {*contracted, *batch, *numbers.rhs_group_dimensions}
    return 2 * math.prod(lhs) * _size(rhs, set(range(len(rhs))) - others)


def _convolution(eqn: core.JaxprEqn) -> int:
    """A kernel's axes are output features, input features of a group, then space."""
    kernel = _shape(eqn.invars[1])
    _, *summed = eqn.params["dimension_numbers"].rhs_spec
    return 2 * math.prod(_shape(eqn.outvars[0])) * _size(kernel, summed)


def _size(shape: Sequence[int], axes: Iterable[int]) -> int:
    """The product of some dimensions of a shape."""
    return math.prod(shape[axis] for axis in axes)


PRODUCTS = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
}
"""Primitive to the function that counts its FLOPs."""

CALLS = (
    "jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2",
    "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "shard_map",
)  # fmt: skip
"""Primitives whose inner jaxpr has the equation's own operands and results."""
