"""Steps whose results have the same bits on any number of devices."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from jaxpar.partition import own_rows
from jaxpar.partition.fixed_order import (
    compiler_options,
    sum_of_parts,
    sum_over_devices,
)
from jaxpar.partition.layout import Placed
from jaxpar.partition.sharding import use_layout
from jaxpar.train.gradients import Gradients, loss_gradients, row_keys
from jaxpar.train.objective import Batch, Sums
from jaxpar.train.state import Recipe

OnRows = Callable[[Any, Batch, Any], Any]
"""(params, rows of a batch, their keys or None) -> sums over the rows, as a tree."""


def over_parts(f: OnRows, recipe: Recipe, placed: Placed, *, parts: int) -> OnRows:
    """f of all rows, added up in one order over so many parts of the batch.

    Every part runs alone, so that it is computed in the same way whatever else its
    device computes.
    """
    axes, n = tuple(placed.layout.sizes), placed.layout.n_devices

    def on_own_rows(params, batch, keys):
        def part(rows):
            # What is fused across the borders of a part depends on their number.
            rows = jax.lax.optimization_barrier(rows)
            return jax.lax.optimization_barrier(f(params, *rows))

        found = sum_of_parts(part, (batch, keys), parts // n)
        return sum_over_devices(found, axes, n)

    def run(params, batch, keys):
        over_devices = own_rows.on_own_rows(
            on_own_rows, axes, names=recipe.anatomy.names, batch=batch,
            out_specs=PartitionSpec(),
        )  # fmt: skip
        return over_devices(params, batch, keys)

    return run


def make_exact_gradients(
    recipe: Recipe, placed: Placed, *, exact: int, seed: int = 0
) -> Gradients:
    """As train.gradients.make_gradients, over `exact` parts of the batch."""
    run = over_parts(loss_gradients(recipe), recipe, placed, parts=exact)

    def in_layout(params: Any, batch: Batch, step: Int[Array, ""]) -> tuple[Any, Sums]:
        with use_layout(placed, recipe.precision):
            keys = row_keys(seed, step, jax.tree.leaves(batch)[0].shape[0])
            return run(own_rows.widened(params), batch, keys)

    return in_layout


def make_exact_step(
    recipe: Recipe,
    placed: Placed,
    update: Callable[..., Any],
    *,
    exact: int,
    seed: int,
    out_shardings: Any,
) -> Callable[[Any, Batch, jax.Array], Any]:
    """A function (state, batch, rate) -> what update(state, gradients, rate) returns.

    Two programs: fused with the last sums of gradients, an update would have other bits
    on one device. Every device makes the whole update.
    """
    options = compiler_options(placed.platform)
    gradients = jax.jit(
        make_exact_gradients(recipe, placed, exact=exact, seed=seed),
        out_shardings=placed.replicated,
        compiler_options=options,
    )

    def on_every_device(*args):
        with use_layout(placed, recipe.precision):
            return own_rows.on_every_device(update)(*args)

    apply = jax.jit(
        on_every_device,
        donate_argnums=0,
        out_shardings=out_shardings,
        compiler_options=options,
    )
    return lambda state, batch, rate: apply(
        state, gradients(state.params, batch, state.step), rate
    )
