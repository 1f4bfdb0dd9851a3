"""Localisation of a wrong layout's first error: activation or leaf, layer, devices."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.sharding import single_device
from jaxpar.pipeline.layer_order import layer_order
from jaxpar.tree import flatten, path_of
from jaxpar.verify.compare import (
    OF_PARAMETERS,
    Reference,
    axes_of,
    differences,
    errors,
    largest_of_kind,
    relative_error,
)
from jaxpar.verify.computed import Computed
from jaxpar.verify.parts import NOTES, Part
from jaxpar.verify.proof import First, Leaf

STACK = "layers"


class Suspect(NamedTuple):
    """An array, or one layer of a stacked array."""

    path: str
    layer: int | None


def locate(reference: Reference, computed: Computed, leaves: Iterable[Leaf]) -> First:
    """What is wrong first, in the order of computation, and where on the mesh.

    leaves: those of the comparison, at least one of which has failed.
    """
    failed_kinds = {leaf.kind for leaf in leaves if not leaf.passed}
    part = next(part for part in reference.parts if part.kind in failed_kinds)
    first = None
    if part.where in ("forward", "backward"):
        first = _first(NOTES, reference, computed)
    if first is None:
        first = _first(part, reference, computed)
    if first is None:
        raise AssertionError(f"{part.kind} differs, and none of its leaves does.")
    return dataclasses.replace(first, axis=_axis(reference, part, computed.layout))


def _suspects(
    part: Part, reference: Reference, computed: Computed
) -> Iterator[Suspect]:
    """The leaves of a part in the order in which they are computed, layer by layer."""
    names, wanted = flatten(computed.anatomy.names), reference.wanted(part)
    paths, backward = list(wanted), part.where == "backward"
    if backward:
        uses = first_uses(reference.one)
        paths.sort(key=lambda path: uses[path], reverse=True)

    def is_stacked(path: str) -> bool:
        # Whether the first axis of what is noted, or of a parameter, counts layers.
        if part is NOTES or part.kind == "router":
            return path.startswith(STACK)
        return wanted[path].ndim > 0 and STACK in axes_of(path, names)[:1]

    for stacked, group in itertools.groupby(paths, is_stacked):
        group = list(group)
        if not stacked:
            yield from (Suspect(path, None) for path in group)
            continue
        layers = range(max(wanted[path].shape[0] for path in group))
        for layer in reversed(layers) if backward else layers:
            there = (path for path in group if layer < wanted[path].shape[0])
            yield from (Suspect(path, layer) for path in there)


def _first(part: Part, reference: Reference, computed: Computed) -> First | None:
    """The first leaf of a part that is wrong on some device; None if none is."""
    wanted, limits = reference.wanted_on(part, computed), reference.limits(part)
    if part is NOTES:
        wanted = _in_layout_order(wanted, computed)
    got = part.read(computed)
    largest = largest_of_kind(part, wanted)
    failed = {
        path
        for path, error in errors(part, got, wanted).items()
        if not _passes(error, limits[path])
    }
    for path, layer in _suspects(part, reference, computed):
        if path not in failed:
            continue
        wrong, devices = [], []
        for device, slices, difference in differences(got[path], wanted[path]):
            place = layer
            if layer is not None and part.kind in OF_PARAMETERS:
                n = len(wanted[path])
                place = [*layer_order(computed.layout, n)].index(layer)
            values = _layer_of(difference, slices, place)
            if values is None:
                continue
            devices.append(device)
            error = relative_error(values, wanted[path], largest[path])
            if not _passes(error, limits[path]):
                wrong.append(device)
        if wrong:
            shard = _coordinates(computed.placed, wrong, devices)
            return First(part.where, path, layer, shard)
    return None


def _in_layout_order(
    wanted: Mapping[str, np.ndarray], computed: Computed
) -> dict[str, np.ndarray]:
    """One device's activations with the tokens of each row in a layout's order."""
    T = computed.experiment.data.seq_len
    order = computed.layout.token_numbers(T)

    def reordered(name: str, x: np.ndarray) -> np.ndarray:
        axis = 2 if name.startswith(STACK) else 1
        return np.take(x, order, axis) if x.shape[axis : axis + 1] == (T,) else x

    return {name: reordered(name, x) for name, x in wanted.items()}


def _passes(error: float, limit: float) -> bool:
    return Leaf("", "", error, limit).passed


def _layer_of(
    piece: np.ndarray, slices: tuple[slice, ...], layer: int | None
) -> np.ndarray | None:
    """One layer of a device's piece of an array; None where another device has it."""
    if layer is None:
        return piece
    i = layer - (slices[0].start or 0)
    return piece[i] if 0 <= i < piece.shape[0] else None


def _coordinates(
    placed: Placed, wrong: list[Any], devices: list[Any]
) -> dict[str, int | list[int]] | None:
    """Mesh coordinates of the wrong devices, along words where others are right."""
    if len(wrong) == len(devices):
        return None
    mesh = placed.mesh
    positions = np.array([np.argwhere(mesh.devices == device)[0] for device in wrong])
    shard = {}
    for axis, word in enumerate(_words(placed.layout)):
        coordinates = sorted({int(i) for i in positions[:, axis]})
        if len(coordinates) < mesh.devices.shape[axis]:
            one = len(coordinates) == 1
            shard[word] = coordinates[0] if one else coordinates
    return shard or None


def _words(layout: Layout) -> list[str]:
    """The layout's words without their sizes, one for each axis of its mesh."""
    return [word.partition("=")[0] for word in layout.spelling.split(",")]


def _axis(reference: Reference, part: Part, layout: Layout) -> str:
    """The words of the smallest part of the layout that still fails."""
    words = layout.spelling.split(",")
    for n in range(1, min(len(words), 3)):
        for subset in itertools.combinations(words, n):
            smaller = Layout.parse(",".join(subset))
            leaves = reference.leaves(part, reference.on(smaller))
            if not all(leaf.passed for leaf in leaves):
                return ",".join(_words(smaller))
    return ",".join(_words(layout))


def first_uses(computed: Computed) -> dict[str, tuple[int, ...]]:
    """For each parameter, where the forward pass first uses it, as a sorting key.

    The key is an equation's number in the jaxpr of the loss; for a use in a loop it is
    the loop's number, then that in its body.
    """
    anatomy, objective = computed.anatomy, computed.experiment.objective
    shapes = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in computed.batch.items()
    }

    def loss(params: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return objective(computed.recipe.merge(anatomy, params), batch, None).loss

    with jax.enable_x64(computed.in_float64), single_device(computed.recipe.precision):
        jaxpr = jax.make_jaxpr(loss)(anatomy.shapes, shapes).jaxpr
    leaves = jax.tree_util.tree_flatten_with_path(anatomy.shapes)[0]
    return {
        path_of(keys): _first_use(jaxpr, jaxpr.invars[i])
        for i, (keys, _) in enumerate(leaves)
    }


def _first_use(jaxpr: Any, variable: Any) -> tuple[int, ...]:
    """The numbers, from the outside in, of the first equation with a variable."""
    for i, equation in enumerate(jaxpr.eqns):
        inputs = enumerate(equation.invars)
        argument = next((k for k, v in inputs if v is variable), None)
        if argument is None:
            continue
        inner = equation.params.get("jaxpr")
        inner = getattr(inner, "jaxpr", inner)
        if inner is None or len(inner.invars) != len(equation.invars):
            return (i,)
        return (i, *_first_use(inner, inner.invars[argument]))
    return (len(jaxpr.eqns),)
