"""States and parameters between the order of layers on devices and the natural one.

Only a circular pipeline's differ (jaxpar.pipeline.layer_order); of other layouts these
functions return what they are given. They run where arrays come from a checkpoint or
from another layout, or go there; a training step never calls them.
"""

import math
from typing import Any, TypeVar

import jax

from jaxpar.partition.layout import Placed
from jaxpar.pipeline.layer_order import in_natural_order, in_stored_order, on_devices
from jaxpar.train.state import Recipe
from jaxpar.tree import flatten, unflatten

T = TypeVar("T")


def to_stored(recipe: Recipe, placed: Placed, tree: T) -> T:
    """A state, parameters or gradients, with layers as the devices of a layout do.

    tree: in the natural order, placed on the devices; its arrays are donated.
    """
    return _reordered(in_stored_order, recipe, placed, tree, donate=True)


def to_natural(recipe: Recipe, placed: Placed, tree: T) -> T:
    """The inverse of `to_stored`; of a circular pipeline a copy, on its devices."""
    return _reordered(in_natural_order, recipe, placed, tree, donate=False)


def _reordered(reorder, recipe: Recipe, placed: Placed, tree: T, *, donate: bool) -> T:
    layout = placed.layout
    if layout.n_rounds == 1:
        return tree
    names = flatten(recipe.anatomy.names)

    def moved(keys, x):
        path = recipe.parameter_of(keys, x)
        if path is None:
            return x
        return on_devices(reorder, x, names[path], layout, donate=donate)

    return jax.tree_util.tree_map_with_path(moved, tree)


def stored_params(recipe: Recipe, placed: Placed) -> Any:
    """Shapes of a source's parameters, split as far as their sizes allow.

    Its vocabulary need not be divisible here, where a larger one is: such an axis is
    not split until it has grown.
    """
    names = flatten(recipe.anatomy.names)

    def place(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        kept = tuple(
            name if _divides(placed, name, size) else None
            for name, size in zip(names[path], leaf.shape, strict=True)
        )
        sharding = placed.sharding(kept, "stored")
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    shapes = flatten(recipe.anatomy.shapes)
    return unflatten({path: place(path, leaf) for path, leaf in shapes.items()})


def _divides(placed: Placed, name: str | None, size: int) -> bool:
    """Whether an axis of this size can be split as its name says."""
    (axes,) = placed.layout.split([name], "stored")
    return size % math.prod(placed.layout.sizes[axis] for axis in axes) == 0
