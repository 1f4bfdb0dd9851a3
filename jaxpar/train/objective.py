"""Training objectives: rows of data in, sums of losses out."""

import abc
import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.config import require_positive
from jaxpar.data import task
from jaxpar.data.windows import Window
from jaxpar.models.base import Model
from jaxpar.nn.places import Places
from jaxpar.train.loss import chunked_loss

Batch = dict[str, jax.Array]
"""Fields of the rows of a batch, each [B, T]."""


class Sums(NamedTuple):
    """Sums over tokens, not means: microbatches and shards add up, then divide once."""

    loss: jax.Array
    """Weighted sum of the tokens' losses, in nats; a scalar."""
    weight: jax.Array
    """Sum of the tokens' weights; a scalar."""
    metrics: dict[str, jax.Array]
    """Further weighted sums, by name; scalars."""


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """What a model is trained to do: makes rows of windows, and the loss of rows."""

    @abc.abstractmethod
    def row(self, window: Window) -> dict[str, np.ndarray]:
        """The fields of a window's row, each [T].

        `weights` is required: rows that pad a batch get weight 0.
        """

    @abc.abstractmethod
    def __call__(self, model: Model, batch: Batch, keys: jax.Array | None) -> Sums:
        """Sums over a batch.

        model: a jaxpar.models.base.Model. keys: one random key per row [B], or None
        where nothing is random, as in an evaluation.
        """


@dataclasses.dataclass(frozen=True)
class CausalLM(Objective):
    """Next-token prediction (causal language modelling)."""

    chunk: int = 256
    """Positions of each row whose logits are in memory at a time."""

    def __post_init__(self):
        require_positive(self, "chunk")

    def row(self, window: Window) -> dict[str, np.ndarray]:
        return task.causal(window)

    def __call__(self, model: Model, batch: Batch, keys: jax.Array | None) -> Sums:
        where = Places(batch["positions"], batch["segments"])
        x, _ = model(batch["tokens"], where, keys)
        weights = batch["weights"]
        loss = chunked_loss(
            model.unembed, x, batch["targets"], weights, chunk=self.chunk
        )
        return Sums(loss, jnp.sum(weights.astype(loss.dtype)), {})
