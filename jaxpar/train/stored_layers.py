"""States and parameters between the order of layers on devices and the natural one.

Only a circular pipeline's differ (jaxpar.pipeline.layer_order); of other layouts these
functions return what they are given. They run where arrays come from a checkpoint or
from another layout, or go there; a training step never calls them.
"""

from typing import TypeVar

import jax

from jaxpar.partition.layout import Layout, Placed
from jaxpar.pipeline.layer_order import in_natural_order, in_stored_order, on_devices
from jaxpar.train.state import Recipe
from jaxpar.tree import flatten

T = TypeVar("T")


def to_stored(recipe: Recipe, where: Layout | Placed, tree: T) -> T:
    """A state, parameters or gradients, with layers as the devices of a layout do.

    tree: in the natural order, placed on the devices; its arrays are donated.
    """
    return _reordered(in_stored_order, recipe, where, tree, donate=True)


def to_natural(recipe: Recipe, where: Layout | Placed, tree: T) -> T:
    """The inverse of `to_stored`; of a circular pipeline a copy, on its devices."""
    return _reordered(in_natural_order, recipe, where, tree, donate=False)


def _reordered(reorder, recipe: Recipe, where, tree: T, *, donate: bool) -> T:
    layout = where.layout if isinstance(where, Placed) else where
    if layout.n_rounds == 1:
        return tree
    names = flatten(recipe.anatomy.names)

    def moved(keys, x):
        path = recipe.parameter_of(keys, x)
        if path is None:
            return x
        return on_devices(reorder, x, names[path], layout, donate=donate)

    return jax.tree_util.tree_map_with_path(moved, tree)
