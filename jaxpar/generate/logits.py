"""Logits of given tokens under a model, as NumPy."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpar.errors import UserError
from jaxpar.nn.places import Places, one_document_per_row
from jaxpar.partition.layout import Placed
from jaxpar.partition.sharding import use_layout
from jaxpar.train.state import Recipe

TokenIds = Sequence[int] | np.ndarray | jax.Array
"""The token ids of one text, [T]."""
TokenRows = Sequence[TokenIds] | np.ndarray | jax.Array
"""The token ids of several texts."""


def require_in_vocabulary(rows: TokenRows, vocab_size: int) -> None:
    """Refuses token ids that the model does not have; JAX would read another row.

    Raises:
      UserError: an id is not a whole number from 0 to vocab_size - 1.
    """
    for number, row in enumerate(rows):
        for place, each in enumerate(np.asarray(row, object).tolist()):
            is_number = isinstance(each, int | np.integer) and type(each) is not bool
            if not is_number or not 0 <= each < vocab_size:
                raise UserError(
                    f"Token id {each} (row {number}, position {place}) is not in the "
                    f"model's vocabulary of {vocab_size}; ids are whole numbers from "
                    f"0 to {vocab_size - 1}."
                )


def logits_of(
    recipe: Recipe, placed: Placed, params: Any, tokens: TokenRows
) -> Float[np.ndarray, "B T V"]:
    """Logits for rows of token ids [B, T], each of which is one document.

    params: as a step on `placed` has them. V is the vocabulary without padding. The
    batch must be divisible by the layout.

    Raises:
      UserError: an id is not in the vocabulary.
    """
    require_in_vocabulary(tokens, recipe.model.vocab_size)
    params = recipe.to_natural(placed, params)
    anatomy, placed = recipe.anatomy, placed.for_generation()

    def forward(params: Any, tokens: Int[Array, "B T"], where: Places) -> jax.Array:
        with use_layout(placed, recipe.precision):
            model = recipe.merge(anatomy, params)
            x, _ = model(tokens, where)
            return model.unembed(x)

    tokens = np.asarray(tokens, np.int32)
    where = one_document_per_row(jnp.asarray(tokens))
    sharding = placed.sharding(("batch", "seq"))
    tokens, where = jax.device_put((tokens, where), sharding)
    logits = jax.jit(forward)(params, tokens, where)
    return np.asarray(jax.device_get(logits))[..., : recipe.model.vocab_size]
