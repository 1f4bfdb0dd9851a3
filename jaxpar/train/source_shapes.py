"""Shapes of the parameters of a fine-tune's source, on the fine-tune's devices."""

import math
from typing import Any

import jax

from jaxpar.partition.layout import Placed
from jaxpar.train.state import Recipe
from jaxpar.tree import flatten, unflatten


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
