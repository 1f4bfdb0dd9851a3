"""Bytes of the training state that each device holds under a layout."""

import math
from typing import NamedTuple

import jax

from jaxpar.partition.layout import Layout
from jaxpar.train.state import Recipe
from jaxpar.tree import flatten


class StateBytes(NamedTuple):
    """What one device holds of the state, in bytes."""

    params: int
    optimizer: int


def state_bytes(recipe: Recipe, layout: Layout) -> StateBytes:
    """The bytes of parameters and optimizer on each device; allocates nothing.

    Raises:
      UserError: the layout cannot split a parameter.
    """
    names = flatten(recipe.anatomy.names)
    state = recipe.abstract(layout)
    params = sum(
        math.prod(layout.piece(leaf.shape, names[path])) * leaf.dtype.itemsize
        for path, leaf in flatten(state.params).items()
    )
    optimizer = 0
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state):
        path = recipe.parameter_of(keys, leaf)
        shape = leaf.shape
        if path is not None:
            shape = layout.piece(shape, names[path], "optimizer")
        optimizer += math.prod(shape) * leaf.dtype.itemsize
    return StateBytes(params, optimizer)
