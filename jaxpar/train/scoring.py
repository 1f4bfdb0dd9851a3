"""Evaluation loss over a whole held-out set, per token and per byte."""

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax

from jaxpar.partition import cluster

AnyBatch = TypeVar("AnyBatch")


def total_loss(
    eval_step: Callable[[Any, AnyBatch], dict[str, jax.Array]],
    params: Any,
    batches: Iterable[AnyBatch],
) -> dict[str, float]:
    """{"loss", "weight"}: sums over all batches, added in float64 on the host.

    loss is in nats, weight in tokens. Each batch is fetched before the next one starts:
    independent programs with collectives, run at once on simulated devices, may
    deadlock. Every process returns the sums of process 0, so that all decide alike.
    """
    scores = [
        jax.device_get(jax.block_until_ready(eval_step(params, batch)))
        for batch in batches
    ]
    totals = {
        name: _exact_sum([float(score[name]) for score in scores])
        for name in ("loss", "weight")
    }
    return cluster.broadcast(totals)


def per_token_and_byte(
    totals: dict[str, float], n_bytes: int
) -> dict[str, float | None]:
    """Totals as nats per scored token and per byte of the scored text.

    None where there is no token, or no byte.
    """
    loss, weight = totals["loss"], totals["weight"]
    return {
        "nats_per_token": loss / weight if weight else None,
        "nats_per_byte": loss / n_bytes if n_bytes else None,
    }


def perplexity(nats_per_token: float | None) -> float | None:
    """exp of the loss: infinity where that is beyond float64; None of None.

    >>> perplexity(0.0), perplexity(1e4), perplexity(None)
    (1.0, inf, None)
    """
    if nats_per_token is None:
        return None
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        return math.inf


def _exact_sum(values: list[float]) -> float:
    """The sum, rounded once; NaN or infinity where a value is."""
    # fsum refuses infinities of both signs.
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
