"""Loss over all of a held-out set."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax

from jaxpar.partition import cluster


def total_loss(
    eval_step: Callable[[Any, Any], dict[str, jax.Array]],
    params: Any,
    batches: Iterable[Any],
) -> dict[str, float]:
    """{"loss", "weight"}: sums over every batch, added in float64 on the host.

    One batch is in flight at a time: independent programs with collectives, run at
    once on simulated devices, may wait for each other for ever. Every process gets the
    sums of process 0, since it will decide by them.
    """
    found = [jax.device_get(eval_step(params, batch)) for batch in batches]
    sums = {
        name: math.fsum(float(sums[name]) for sums in found)
        for name in ("loss", "weight")
    }
    return cluster.broadcast(sums)


def per_token_and_byte(
    totals: dict[str, float], n_bytes: int
) -> dict[str, float | None]:
    """Totals as nats per scored token and per byte of the scored text."""
    loss, weight = totals["loss"], totals["weight"]
    return {
        "nats_per_token": loss / weight if weight else None,
        "nats_per_byte": loss / n_bytes if n_bytes else None,
    }
