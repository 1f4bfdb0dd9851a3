"""What a model is trained to do: rows of data in, sums out."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpar.data import task
from jaxpar.nn.places import Places
from jaxpar.train.loss import chunked_loss


class Sums(NamedTuple):
    """Sums over tokens, never means: accumulation and shards divide once, last."""

    loss: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """Names the task that makes rows of a window, and sums a model's loss on them."""

    def row(self, window) -> dict[str, Any]:
        """A window's fields, as NumPy."""
        raise NotImplementedError(f"{type(self).__name__} makes no rows.")

    def __call__(self, model, batch: dict[str, jax.Array], keys) -> Sums:
        """Sums over a batch; keys [B] are the rows' own randomness, or None."""
        raise NotImplementedError(f"{type(self).__name__} has no loss.")


@dataclasses.dataclass(frozen=True)
class CausalLM(Objective):
    """Predicts each next token; `chunk` positions of logits exist at a time."""

    chunk: int = 256

    def row(self, window) -> dict[str, Any]:
        return task.causal(window)

    def __call__(self, model, batch: dict[str, jax.Array], keys) -> Sums:
        where = Places(batch["positions"], batch["segments"])
        x, _ = model(batch["tokens"], where, keys)
        weights = batch["weights"]
        loss = chunked_loss(
            model.unembed, x, batch["targets"], weights, chunk=self.chunk
        )
        return Sums(loss, jnp.sum(weights.astype(loss.dtype)), {})
