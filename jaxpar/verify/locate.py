"""Where a wrong layout goes wrong first."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.sharding import single_device
from jaxpar.tree import flatten, path_of
from jaxpar.verify.compare import Reference, errors, gaps, score, sizes
from jaxpar.verify.computed import Computed
from jaxpar.verify.parts import NOTES, Part
from jaxpar.verify.proof import First, Leaf

STACK = "layers"


class Suspect(NamedTuple):
    """An array, or one layer of one, in the order in which it is computed."""

    path: str
    layer: int | None


def locate(reference: Reference, computed: Computed, leaves: Iterable[Leaf]) -> First:
    """The first thing that differs: its name, layer, shard and mesh axis."""
    kinds = {leaf.kind for leaf in leaves if not leaf.passed}
    part = next(part for part in reference.parts if part.kind in kinds)
    found = None
    if part.where in ("forward", "backward"):
        found = _first(NOTES, reference, computed, _in_order(reference))
    if found is None:
        order = _suspects(part, reference, computed)
        found = _first(part, reference, computed, order)
    if found is None:
        raise AssertionError(f"{part.kind} differs, and none of its leaves does.")
    return dataclasses.replace(found, axis=_axis(reference, part, computed.layout))


def _suspects(part: Part, reference: Reference, computed) -> Iterator[Suspect]:
    """A part's leaves in the order in which they should be suspected."""
    names = flatten(computed.anatomy.names)
    wanted = reference.wanted(part)
    order = list(wanted)
    if part.where == "backward":
        used = first_uses(reference.one)
        order.sort(key=lambda path: used[path], reverse=True)
    for _, group in itertools.groupby(order, lambda path: _stacked(path, names)):
        same = list(group)
        if not _stacked(same[0], names):
            yield from (Suspect(path, None) for path in same)
            continue
        layers = range(max(wanted[path].shape[0] for path in same))
        for layer in reversed(layers) if part.where == "backward" else layers:
            for path in same:
                if layer < wanted[path].shape[0]:
                    yield Suspect(path, layer)


def _stacked(path: str, names: dict[str, tuple[str, ...]]) -> bool:
    """Whether a leaf, a moment or a parameter, has a first axis of layers."""
    own = names.get(path) or names.get(path.partition("/")[2]) or ()
    return STACK in own[:1]


def _in_order(reference: Reference) -> Iterator[Suspect]:
    """The notes as they are made: a stack's layer by layer."""
    wanted = reference.wanted(NOTES)
    for _, group in itertools.groupby(wanted, lambda name: name.startswith(STACK)):
        same = list(group)
        if not same[0].startswith(STACK):
            yield from (Suspect(name, None) for name in same)
            continue
        for layer in range(wanted[same[0]].shape[0]):
            yield from (Suspect(name, layer) for name in same)


def _first(part: Part, reference: Reference, computed, order) -> First | None:
    wanted, limits = reference.wanted(part), reference.limits(part)
    if part is NOTES:
        wanted = _as_placed(wanted, computed)
    got = part.read(computed)
    largest = sizes(part, wanted)
    found = errors(part, got, wanted)
    bad = {path for path, error in found.items() if not _fits(error, limits[path])}
    for path, layer in order:
        if path not in bad:
            continue
        wrong, devices = [], []
        for device, index, gap in gaps(got[path], wanted[path]):
            piece = _layer(gap, index, layer)
            if piece is None:
                continue
            devices.append(device)
            if not _fits(score(piece, wanted[path], largest[path]), limits[path]):
                wrong.append(device)
        if wrong:
            shard = _coordinates(computed.placed, wrong, devices)
            return First(part.where, path, layer, shard)
    return None


def _as_placed(wanted: dict[str, np.ndarray], computed) -> dict[str, np.ndarray]:
    """One device's activations, with their tokens in a layout's order."""
    T = computed.experiment.data.seq_len
    order = computed.layout.token_numbers(T)

    def placed(name: str, x: np.ndarray) -> np.ndarray:
        axis = 2 if name.startswith(STACK) else 1
        return np.take(x, order, axis) if x.shape[axis : axis + 1] == (T,) else x

    return {name: placed(name, x) for name, x in wanted.items()}


def _fits(error: float, limit: float) -> bool:
    return Leaf("", "", error, limit).passed


def _layer(gap: np.ndarray, index: tuple, layer: int | None) -> np.ndarray | None:
    """A layer of a device's piece; None where another device has it."""
    if layer is None:
        return gap
    at = layer - (index[0].start or 0)
    return gap[at] if 0 <= at < gap.shape[0] else None


def _coordinates(placed: Placed, wrong: list, devices: list) -> dict | None:
    """Where on the mesh the wrong devices are, along the axes that tell them apart."""
    if len(wrong) == len(devices):
        return None
    mesh = placed.mesh
    places = np.array([np.argwhere(mesh.devices == device)[0] for device in wrong])
    shard = {}
    for axis, name in enumerate(mesh.axis_names):
        at = sorted({int(i) for i in places[:, axis]})
        if len(at) < mesh.shape[name]:
            shard[str(name)] = at[0] if len(at) == 1 else at
    return shard or None


def _axis(reference: Reference, part: Part, layout: Layout) -> str:
    """The mesh axes of the smallest sub-layout that still fails."""
    words = layout.spelling.split(",")
    for n in range(1, min(len(words), 3)):
        for some in itertools.combinations(words, n):
            smaller = Layout.parse(",".join(some))
            leaves = reference.leaves(part, reference.on(smaller))
            if not all(leaf.passed for leaf in leaves):
                return ",".join(smaller.sizes)
    return ",".join(layout.sizes)


def first_uses(computed: Computed) -> dict[str, tuple[int, ...]]:
    """Where in the forward pass each parameter is first used, to be sorted by.

    One used inside a loop comes with the place of the loop first.
    """
    anatomy, objective = computed.anatomy, computed.experiment.objective
    shapes = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in computed.batch.items()
    }

    def loss(params, batch):
        return objective(computed.recipe.merge(anatomy, params), batch, None).loss

    with jax.enable_x64(computed.in_float64), single_device(computed.recipe.precision):
        jaxpr = jax.make_jaxpr(loss)(anatomy.shapes, shapes).jaxpr
    leaves = jax.tree_util.tree_flatten_with_path(anatomy.shapes)[0]
    return {
        path_of(keys): _use(jaxpr, jaxpr.invars[i])
        for i, (keys, _) in enumerate(leaves)
    }


def _use(jaxpr: Any, variable: Any) -> tuple[int, ...]:
    for i, eqn in enumerate(jaxpr.eqns):
        at = next((k for k, v in enumerate(eqn.invars) if v is variable), None)
        if at is None:
            continue
        inner = eqn.params.get("jaxpr")
        inner = getattr(inner, "jaxpr", inner)
        if inner is None or len(inner.invars) != len(eqn.invars):
            return (i,)
        return (i, *_use(inner, inner.invars[at]))
    return (len(jaxpr.eqns),)
