"""Model FLOPs of a function, counted in its jaxpr."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from jax.extend import core
from jax.sharding import PartitionSpec


def model_flops(fn: Callable, *args: Any) -> int:
    """FLOPs of all matrix products and convolutions in one call of fn(*args).

    A product in a scan of length n counts n times; of a `cond`, the branch with most
    FLOPs counts. Only shapes are read, so args may be ShapeDtypeStructs, and nothing
    is compiled. Of a forward pass these are the model FLOPs: a training step has three
    times as many (each product has two more in the backward pass), not counting
    rematerialisation. What a library call does, such as cuDNN's attention, is missed.

    Warns about a product in a `while` loop, whose length is unknown before it runs: it
    counts once.
    """
    return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_count_equation(eqn) for eqn in jaxpr.eqns)


def _count_equation(eqn: core.JaxprEqn) -> int:
    name, params = eqn.primitive.name, eqn.params
    if name in PRODUCTS:
        return PRODUCTS[name](eqn)
    inner = [_count(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if not any(inner):
        return 0
    if name == "cond":
        return max(inner)
    if name == "while":
        warnings.warn(
            f"A while loop has {sum(inner):,} FLOPs per iteration, of which one is "
            "counted. Those of a scan, or a fori_loop of fixed length, all are.",
            stacklevel=2,
        )
    return sum(inner) * _repetitions(name, params)


def _repetitions(name: str, params: dict[str, Any]) -> int:
    """How often an equation runs the jaxprs in it."""
    if name == "scan":
        return params["length"]
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


def _inner_jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
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
