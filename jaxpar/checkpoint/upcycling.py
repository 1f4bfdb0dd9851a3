"""A dense run's MLPs as the experts of a mixture (Komatsuzaki et al., 2023)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpar.errors import UserError
from jaxpar.tree import flatten, unflatten

EXPERTS, ROUTER = "experts", "experts_"
"""Axes of the experts' parameters, and of the router's, which stay fresh."""
Names = Mapping[str, tuple[str | None, ...]]
"""Axis names of parameters, by path."""


def upcycled(theirs: Any, ours: Any, names: Names) -> Any:
    """The source's parameters, in which each expert has a copy of the MLP there.

    An MLP and its experts have the same paths; experts have one axis more. theirs,
    ours: trees of arrays, or of their shapes. names: of our parameters. The mixture
    then computes what the source does if gates add up to 1 (norm_top_k, and a
    scaling_factor of 1), nothing is dropped, and there are no shared experts.

    Raises:
      UserError: none of the source's parameters fits an expert, with both shapes.
    """
    source, wanted = flatten(theirs), flatten(ours)
    of_experts = {path: axes for path, axes in names.items() if EXPERTS in axes}
    places = {
        path: axes.index(EXPERTS)
        for path, axes in of_experts.items()
        if path in source and _without(wanted[path].shape, axes) == source[path].shape
    }
    if not places:
        there = {
            path: tuple(source[path].shape) for path in of_experts if path in source
        }
        here = {path: tuple(wanted[path].shape) for path in of_experts}
        raise UserError(
            f"upcycle=True copies MLPs to experts of their size; here are {here}, "
            f"there {there or 'none of these'}; make experts.expert.d_mlp the source's "
            "mlp.d_mlp, with as many blocks in a pattern."
        )
    copies = {
        path: _copied(source[path], wanted[path], axis) for path, axis in places.items()
    }
    return unflatten({**source, **copies})


def of_mixtures_alone(names: Names) -> tuple[str, ...]:
    """The paths of routers' and shared experts' parameters, which no dense run has."""
    routers = [path for path, axes in names.items() if ROUTER in axes]
    shared = {path.rpartition("/")[0] + "/shared/" for path in routers}
    return (*routers, *(path for path in names if path.startswith(tuple(shared))))


def _without(shape: tuple[int, ...], axes: tuple[str | None, ...]) -> tuple[int, ...]:
    return tuple(n for n, name in zip(shape, axes, strict=True) if name != EXPERTS)


def _copied(source: Any, wanted: Any, axis: int) -> Any:
    """The same along an axis of experts; split over the devices as `wanted` is."""
    if isinstance(source, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(wanted.shape, source.dtype)

    def copies(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.expand_dims(x, axis), wanted.shape)

    return jax.jit(copies, out_shardings=wanted.sharding)(source)
