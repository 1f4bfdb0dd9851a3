"""Training objectives: rows of data in, sums of losses out."""

import abc
import dataclasses
import functools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.config import require_positive
from jaxpar.data import task
from jaxpar.data.windows import Window
from jaxpar.errors import UserError
from jaxpar.models.base import Aux, Model
from jaxpar.models.contract import explained
from jaxpar.nn.places import Places
from jaxpar.nn.sequence import sum_of_row
from jaxpar.partition.own_rows import gathered_for_loop
from jaxpar.train.loss import chunked_loss

Batch = dict[str, jax.Array]
"""Fields of the rows of a batch, each [B, T]."""
CAUSAL = ("tokens", "targets", "positions", "segments", "weights")
"""Fields of a row that predicts tokens, as jaxpar.data.task.causal makes them."""


class Sums(NamedTuple):
    """Sums over tokens, not means: microbatches and shards add up, then divide once."""

    loss: jax.Array
    """Weighted sum of the tokens' losses, in nats; a scalar."""
    weight: jax.Array
    """Sum of the tokens' weights; a scalar."""
    metrics: dict[str, jax.Array]
    """Further weighted sums, by name: scalars; and in `verify` what the model notes,
    which are arrays."""
    reports: dict[str, dict[str, jax.Array]] = {}
    """Sums of what routers of experts report (`with_reports`)."""


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
    """What a model is trained to do: makes rows of windows, and the loss of rows."""

    per_token: ClassVar[bool] = False
    """Whether its sums over pieces of the rows, in any order of their tokens, add up to
    those over the rows. Layouts that split the sequence then reduce gradients once a
    step; without this promise, which is not inherited, for each microbatch and chunk of
    the loss."""

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

    def cross_entropy(self, model: Model, batch: Batch) -> Sums | None:
        """Sums of the scored tokens' cross-entropy: what nats per token are made of.

        An evaluation reports it, and the objective's own mean beside it. Here it is of
        the fields CAUSAL; an objective whose rows have others defines it, or returns
        None where its tokens have none: then only its own mean is reported.

        Raises:
          UserError: the rows have no such fields.
        """
        fields = {name: jnp.shape(values) for name, values in batch.items()}
        shapes = {fields.get(name) for name in CAUSAL}
        if len(shapes) > 1 or len(shapes.pop() or ()) != 2:
            kind = type(self).__name__
            raise UserError(
                f"An evaluation reports the tokens' cross-entropy, which needs the "
                f"fields {', '.join(CAUSAL)} of one shape; the rows of {kind} have "
                f"{fields}. Define {kind}.cross_entropy(self, model, batch) -> Sums; "
                f"return None to have the mean of {kind} alone reported."
            )
        return CausalLM()(model, batch, None)


@dataclasses.dataclass(frozen=True)
class CausalLM(Objective):
    """Next-token prediction (causal language modelling)."""

    per_token = True
    chunk: int = 256
    """Positions of each row whose logits a device has in memory at a time."""

    def __post_init__(self):
        require_positive(self, "chunk")

    def row(self, window: Window) -> dict[str, np.ndarray]:
        return task.causal(window)

    def __call__(self, model: Model, batch: Batch, keys: jax.Array | None) -> Sums:
        where = Places(batch["positions"], batch["segments"])
        x, aux = model(batch["tokens"], where, keys)
        weights = batch["weights"]
        unembed = gathered_for_loop(model, lambda model, x: model.unembed(x))
        loss = chunked_loss(unembed, x, batch["targets"], weights, chunk=self.chunk)
        sums = Sums(loss, jnp.sum(weights.astype(loss.dtype)), {})
        # An evaluation, which has no keys, is of the tokens' cross-entropy alone.
        return sums if keys is None else with_reports(sums, aux, weights)


def with_reports(sums: Sums, aux: Aux, weights: jax.Array) -> Sums:
    """The sums of a training loss with what a model's routers report.

    Their losses are means over a row's tokens, and weigh as much as the row's weights
    [B, T] in sum: so they are sums over rows, too. Rows without weight, which pad a
    batch, count nowhere. Of a model without experts the sums stay as they are.
    """
    if not aux.reports:
        return sums
    of_row = jnp.sum(weights.astype(sums.loss.dtype), axis=1)
    is_real = sum_of_row(of_row) > 0
    n_layers = sum(r.loss.size // len(of_row) for r in aux.reports.values())

    def of_rows(x: jax.Array, row_weights: jax.Array) -> jax.Array:
        return jnp.sum(x * row_weights.reshape(*(1,) * (x.ndim - 1), -1), axis=-1)

    def of_layers(field: str) -> jax.Array:
        reports = (getattr(report, field) for report in aux.reports.values())
        return functools.reduce(jnp.add, (jnp.sum(of_rows(x, of_row)) for x in reports))

    loss, balance = of_layers("loss"), of_layers("balance")
    metrics = {"router_loss": loss, "router_balance": balance / n_layers}
    counts = {
        path: {
            "tokens": of_rows(report.tokens, is_real),
            "entropy": of_rows(report.entropy, is_real),
            "dropped": of_rows(report.dropped, is_real),
            "load": of_rows(report.load.swapaxes(-1, -2), is_real),
        }
        for path, report in aux.reports.items()
    }
    metrics = {**sums.metrics, **metrics}
    return Sums(sums.loss + loss, sums.weight, metrics, counts)


def sums_of(
    objective: Objective, model: Model, batch: Batch, keys: jax.Array | None
) -> Sums:
    """What an objective makes of a batch; of one of the user's own, checked.

    Raises:
      UserError: its own code fails, or it returns no Sums of scalars; with its class.
    """
    if not is_own(objective):
        return objective(model, batch, keys)
    kind = type(objective).__name__
    with explained(f"{kind} of rows with {', '.join(batch)}", refusals=False):
        found = objective(model, batch, keys)
    # What `verify` notes along the way stands in metrics, and is no scalar.
    if not isinstance(found, Sums) or jnp.shape(found.loss) or jnp.shape(found.weight):
        raise UserError(
            f"{kind} returns {jax.tree.map(jnp.shape, found)}; it must return "
            "jaxpar.train.objective.Sums: the loss and the weight of all tokens as "
            "scalars, sums and not means, and a dictionary of further sums."
        )
    return found


def is_own(objective: Objective) -> bool:
    """Whether an objective's value is not the tokens' cross-entropy itself."""
    return type(objective) is not CausalLM
