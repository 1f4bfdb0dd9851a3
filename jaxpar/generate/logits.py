"""Logits of tokens under a model, as NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.nn.places import Places, one_document_per_row
from jaxpar.partition.layout import Placed
from jaxpar.partition.sharding import use_layout
from jaxpar.train.state import Recipe


def logits_of(recipe: Recipe, placed: Placed, params, tokens) -> np.ndarray:
    """Logits [B, T, V] of rows of ids [B, T], each one document from its start."""
    anatomy, placed = recipe.anatomy, placed.for_generation()

    def run(params, tokens, where: Places):
        with use_layout(placed, recipe.precision):
            model = recipe.merge(anatomy, params)
            x, _ = model(tokens, where)
            return model.unembed(x)

    tokens = np.asarray(tokens, np.int32)
    where = one_document_per_row(jnp.asarray(tokens))
    put = placed.sharding(("batch", "seq"))
    logits = jax.jit(run)(params, *jax.device_put((tokens, where), put))
    return np.asarray(jax.device_get(logits))[..., : recipe.model.vocab_size]
