"""Positions and document ids of tokens in packed rows (Places)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

# The segment of padding and of empty cache slots, which no query sees.
NO_DOCUMENT = -1


class Places(NamedTuple):
    """Positions and segments [B, T] of tokens.

    positions: the token's number in its document. segments: the number of the document
    in its row, or NO_DOCUMENT. Tokens see each other only within a segment.
    """

    positions: jax.Array
    segments: jax.Array


def one_document_per_row(tokens: Int[Array, "B T"]) -> Places:
    """Places of rows that each hold one document, from its beginning."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return Places(positions, jnp.zeros_like(tokens))
