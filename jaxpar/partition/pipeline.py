"""Runs a stack of blocks over its layers; pipeline schedules go here (none yet)."""

from collections.abc import Callable
from typing import Any

import jax


def stages(
    block: Callable[..., tuple[jax.Array, Any]],
    blocks: Any,
    x: jax.Array,
    *per_row: Any,
) -> tuple[jax.Array, Any]:
    """Runs block(piece, x, *per_row) -> (x, aux) for each layer, in order.

    `blocks` is any pytree stacked by layers, of which a block gets its own piece;
    every block reads `per_row`. Returns x and the aux of all layers, stacked.
    """

    def body(x, piece):
        return block(piece, x, *per_row)

    return jax.lax.scan(body, x, blocks)
