"""Running a stack of blocks: a scan over its layers."""

from collections.abc import Callable

import jax


def stages(block: Callable, blocks, x: jax.Array, *per_row):
    """Runs block(piece, x, *per_row) -> (x, aux) for each layer, in order.

    `blocks` is any pytree stacked by layers; every block reads `per_row`. Returns x
    and the aux of all layers, stacked.
    """

    def body(x, piece):
        return block(piece, x, *per_row)

    return jax.lax.scan(body, x, blocks)
