"""What a whole step's routers report becomes: moved biases, and metrics."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxpar.partition.sharding import current_context
from jaxpar.pipeline.layer_order import in_stored_order
from jaxpar.tree import flatten, unflatten

BIAS = "router_bias"
"""The name of a router's bias, beside its block's other parameters."""
Counts = Mapping[str, Mapping[str, jax.Array]]
"""Sums over a step's tokens of what routers report, by the paths of their blocks."""


def with_moved_biases(updates: Any, reports: Counts, rates: Mapping[str, float]) -> Any:
    """Updates in which routers' biases follow the loads, whatever an optimizer says.

    A bias rises by its rate where an expert got fewer choices than the mean of its
    layer, and sinks where it got more (Wang et al., 2024, algorithm 1): one move for a
    whole step. rates: of each bias, by path; reports: of a step, which has all of them.
    """
    if not rates:
        return updates
    flat = flatten(updates)
    for path, rate in rates.items():
        flat[path] = jnp.zeros_like(flat[path])
        if (report := reports.get(path.removesuffix(f"/{BIAS}"))) is not None:
            load = report["load"]
            # In whole numbers, so that no rounding decides, and none grows too large.
            mean, rest = jnp.divmod(
                jnp.sum(load, axis=-1, keepdims=True), load.shape[-1]
            )
            is_mean = (load == mean) & (rest == 0)
            below = jnp.where(is_mean, 0, jnp.where(load <= mean, 1, -1))
            if (layout := current_context().layout) is not None:
                # Counts have the layers of a stack in order; devices may not.
                names = ("layers", None)[-load.ndim :]
                below = in_stored_order(below, names, layout)
            flat[path] = rate * below.astype(flat[path].dtype)
    return unflatten(flat)


def router_metrics(reports: Counts) -> dict[str, jax.Array]:
    """Metrics of a step's routers; empty where there are none.

    router_entropy: of a token's scores, in nats, a mean. router_dropped: the part of
    choices that were not computed. router_load: [E], each expert's part of the choices
    in all layers, times E. router_load_max: the largest of any layer's experts.
    """
    if not reports:
        return {}
    loads = [report["load"].astype(jnp.float32) for report in reports.values()]
    relative = [x * x.shape[-1] / jnp.sum(x, -1, keepdims=True) for x in loads]
    of_experts = functools.reduce(
        jnp.add, (jnp.sum(x.reshape(-1, x.shape[-1]), 0) for x in loads)
    )

    def total(name: str) -> jax.Array:
        sums = [jnp.sum(r[name].astype(jnp.float32)) for r in reports.values()]
        return jnp.sum(jnp.stack(sums))

    choices = jnp.sum(of_experts)
    return {
        "router_entropy": total("entropy") / total("tokens"),
        "router_dropped": total("dropped") / choices,
        "router_load": of_experts * of_experts.shape[-1] / choices,
        "router_load_max": jnp.max(jnp.stack([jnp.max(x) for x in relative])),
    }
