"""Where each token stands: its position, and the document it belongs to."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

NO_DOCUMENT = -1


class Places(NamedTuple):
    """Positions and segments [B, T]; segment NOWHERE is seen by no query."""

    positions: jax.Array
    segments: jax.Array


def one_document_per_row(tokens: jax.Array) -> Places:
    """Places of rows that are one document each, from its start."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return Places(positions, jnp.zeros_like(tokens))
