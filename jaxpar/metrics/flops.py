"""Floating-point operations of a function, counted in its jaxpr."""

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def model_flops(fn: Callable, *args: Any) -> int:
    """Operations of all matrix products and convolutions in one call of fn(*args).

    A product that runs n times in a scan counts n times; of a `cond`, the costliest
    branch counts. Only shapes are read, so args may be ShapeDtypeStructs, and nothing
    is compiled. Of a forward pass this is the model's own work: a train step does three
    times as much (each product has two more in the backward pass), whatever it
    recomputes. Not seen: what hides in a library call, such as cuDNN's attention.

    Warns where a product stands in a `while` loop, whose length nobody knows before it
    runs: it counts once.
    """
    return _of(jax.make_jaxpr(fn)(*args).jaxpr)


def _of(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(eqn) for eqn in jaxpr.eqns)


def _of_equation(eqn: core.JaxprEqn) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name in PRODUCTS:
        return PRODUCTS[name](eqn)
    inner = [_of(jaxpr) for jaxpr in _inner(params)]
    if not any(inner):
        return 0
    if name == "cond":
        return max(inner)
    if name == "while":
        warnings.warn(
            f"A while loop holds {sum(inner):,} FLOPs a turn; it is counted as one "
            "turn. A scan, or a fori_loop of fixed length, would count them all.",
            stacklevel=2,
        )
    return sum(inner) * _times(name, params)


def _times(name: str, params: dict[str, Any]) -> int:
    """How often an equation runs what it holds."""
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        # Inside, shapes are those of one piece. Over an axis that splits no input,
        # all devices do the same work: for the model it is done once.
        split = {axis for spec in params["in_specs"] for axis in _axes(spec)}
        return math.prod(params["mesh"].shape[axis] for axis in split)
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _axes(spec) -> Iterator[str]:
    for entry in spec:
        if entry is not None:
            yield from (entry if isinstance(entry, tuple) else (entry,))


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    """The jaxprs that stand in an equation's parameters."""
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
    """Each row of lhs meets one group of rhs only."""
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = numbers.dot_dimension_numbers
    lhs, rhs = (_shape(var) for var in eqn.invars[:2])
    taken = {*contracted, *batch, *numbers.rhs_group_dimensions}
    return 2 * math.prod(lhs) * _size(rhs, set(range(len(rhs))) - taken)


def _convolution(eqn: core.JaxprEqn) -> int:
    """The kernel's axes: features out, features in (of one group), then space."""
    kernel = _shape(eqn.invars[1])
    _, *summed = eqn.params["dimension_numbers"].rhs_spec
    return 2 * math.prod(_shape(eqn.outvars[0])) * _size(kernel, summed)


def _size(shape, axes) -> int:
    return math.prod(shape[axis] for axis in axes)


PRODUCTS = {
    "dot_general": _dot,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
}
