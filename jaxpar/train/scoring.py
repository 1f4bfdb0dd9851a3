"""Evaluation loss over a whole held-out set, per token and per byte."""

import collections
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax

from jaxpar.guard import phases
from jaxpar.partition import cluster
from jaxpar.partition.layout import Placed

IN_FLIGHT = 4
"""Batches that an accelerator has to do at a time: enough that it never waits."""
AnyBatch = TypeVar("AnyBatch")


def total_loss(
    eval_step: Callable[[Any, AnyBatch], dict[str, jax.Array]],
    params: Any,
    batches: Iterable[AnyBatch],
    *,
    in_flight: int = 1,
) -> dict[str, float]:
    """The sums of `make_eval_step` over all batches, added in float64 on the host.

    loss is in nats, weight in tokens. in_flight: batches that are computed at a time,
    at most; meanwhile the next one is read, and placed on the devices. Every process
    returns the sums of process 0, so that all decide alike.
    """
    pending, scores = collections.deque[Any](), list[dict[str, Any]]()

    def fetch() -> None:
        scores.append(jax.device_get(jax.block_until_ready(pending.popleft())))
        phases.made_progress()

    for batch in batches:
        if len(pending) == in_flight:
            fetch()
        pending.append(eval_step(params, batch))
    while pending:
        fetch()
    names = scores[0] if scores else ("loss", "weight")
    totals = {
        name: _exact_sum([float(score[name]) for score in scores]) for name in names
    }
    return cluster.broadcast(totals)


def most_in_flight(placed: Placed) -> int:
    """How many batches may be computed at a time: on a CPU one, else IN_FLIGHT.

    Independent programs with collectives, run at once on simulated devices, may
    deadlock.
    """
    return 1 if placed.platform == "cpu" else IN_FLIGHT


def per_token_and_byte(
    totals: dict[str, float], n_bytes: int, objective: str = "objective"
) -> dict[str, Any]:
    """Totals as nats per scored token and per byte of the scored text.

    None where there is no token, or no byte. Of an objective of one's own (by this
    name) also its mean, `objective`, and `objective_name`.
    """
    loss = totals.get("loss")
    scores: dict[str, Any] = {
        "nats_per_token": _per(loss, totals["weight"]),
        "nats_per_byte": _per(loss, n_bytes),
    }
    if "objective" in totals:
        mean = _per(totals["objective"], totals["objective_weight"])
        scores |= {"objective": mean, "objective_name": objective}
    return scores


def _per(total: float | None, number: float | int) -> float | None:
    return total / number if number and total is not None else None


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
