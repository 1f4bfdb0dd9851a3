"""What a model is trained to do: rows of data in, sums out."""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.data import task
from jaxpar.data.windows import Window
from jaxpar.nn.places import Places
from jaxpar.train.loss import chunked_loss

Batch = dict[str, jax.Array]
"""Fields of the rows of a batch, each [B, T]."""


class Sums(NamedTuple):
    """Sums over tokens, never means: accumulation and shards divide once, last."""

    loss: jax.Array
    weight: jax.Array
    metrics: dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """Names the task that makes rows of a window, and sums a model's loss on them."""

    @abc.abstractmethod
    def row(self, window: Window) -> dict[str, np.ndarray]:
        """The fields of the row that a window makes, as NumPy."""

    @abc.abstractmethod
    def __call__(self, model: Any, batch: Batch, keys: jax.Array | None) -> Sums:
        """Sums over a batch.

        model: a jaxpar.models.base.Model. keys [B] are each row's own randomness, None
        where nothing is random.
        """


@dataclasses.dataclass(frozen=True)
class CausalLM(Objective):
    """Predicts each next token."""

    chunk: int = 256
    """Tokens of each row whose logits exist at a time."""

    def row(self, window: Window) -> dict[str, np.ndarray]:
        return task.causal(window)

    def __call__(self, model: Any, batch: Batch, keys: jax.Array | None) -> Sums:
        where = Places(batch["positions"], batch["segments"])
        x, _ = model(batch["tokens"], where, keys)
        weights = batch["weights"]
        loss = chunked_loss(
            model.unembed, x, batch["targets"], weights, chunk=self.chunk
        )
        return Sums(loss, jnp.sum(weights.astype(loss.dtype)), {})
