"""Gradients of a batch: added up over microbatches, then once over all devices."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from jaxpar.errors import UserError
from jaxpar.nn.stack import LAYERS, all_stacks_run
from jaxpar.partition import own_rows
from jaxpar.partition.fixed_order import sum_of_parts, sum_over_devices
from jaxpar.partition.layout import Placed
from jaxpar.partition.own_rows import ROWS, Gathers
from jaxpar.partition.sharding import constrain, use_layout
from jaxpar.train.objective import Batch, Sums, sums_of
from jaxpar.train.state import Recipe

Gradients = Callable[[Any, Batch, Any], tuple[Any, Sums]]
"""(params, batch, keys of rows or the step) -> gradients of the summed loss, Sums."""
OnRows = Callable[[Any, Batch, Any], Any]
"""(params, rows of a batch, their keys or None) -> sums over the rows, as a tree."""


def make_gradients(
    recipe: Recipe,
    placed: Placed,
    *,
    microbatches: int = 1,
    fsdp_gathers: Gathers = "microbatch",
    exact: int = 0,
    seed: int = 0,
) -> Gradients:
    """A function (params, batch, step) -> (gradients of the summed loss, Sums).

    Gradients are in no less than `precision.reduce`, in the slices that the optimizer
    keeps. microbatches: parts of the batch whose gradients are accumulated one after
    another, or which go through a pipeline. fsdp_gathers, exact: see Experiment.
    """
    if exact:
        return _exact_gradients(recipe, placed, exact=exact, seed=seed)
    passes = 1 if placed.layout.n_stages > 1 else microbatches
    accumulated = _accumulated(loss_gradients(recipe), passes)
    names: Any = recipe.anatomy.names

    def device_gradients(params, batch, keys):
        params = own_rows.widened(params)
        if fsdp_gathers == "step":
            params = jax.tree.map(own_rows.gather_once, params, names)
        grads, sums = accumulated(params, batch, keys)
        grads = jax.tree.map(own_rows.reduce_once, grads, names)
        return grads, _over_devices(sums)

    def over_devices(axes: tuple[str, ...], *args: Any) -> tuple[Any, Sums]:
        if not axes:
            params, *rows = args
            return accumulated(own_rows.widened(params), *rows)
        scalar: Any = PartitionSpec()

        def run(metric_specs: Any) -> tuple[Any, Sums]:
            grads = own_rows.specs(names, "optimizer", axes)
            over_rows = own_rows.on_own_rows(
                device_gradients, axes, names=names, batch=args[1],
                gathers=fsdp_gathers, microbatches=microbatches,
                out_specs=(grads, Sums(scalar, scalar, metric_specs, scalar)),
            )  # fmt: skip
            return over_rows(*args)

        with all_stacks_run(names):
            # Metrics are known once they are traced; what `verify` notes is no scalar.
            _, sums = jax.eval_shape(lambda: run(scalar))
            return run(own_rows.specs(_axes_of_notes(sums.metrics), "computed", axes))

    def in_layout(params: Any, batch: Batch, step: Int[Array, ""]) -> tuple[Any, Sums]:
        with use_layout(placed, recipe.precision):
            batch = _where_computed(batch)
            keys = row_keys(seed, step, jax.tree.leaves(batch)[0].shape[0])
            return own_rows.over_row_axes(
                lambda axes: over_devices(axes, params, batch, keys),
                placed.layout,
                per_token=recipe.per_token,
            )

    return in_layout


def _over_devices(sums: Sums) -> Sums:
    """The sums over all devices' rows; what `verify` notes stays with its rows."""
    reports = own_rows.sum_over_rows(sums.reports, only_scalars=False)
    return own_rows.sum_over_rows(sums)._replace(reports=reports)


def _where_computed(batch: Batch) -> Batch:
    """The rows, placed on the devices that compute on them."""
    return {
        name: constrain(x, "batch", *("seq",) * (x.ndim - 1))
        for name, x in batch.items()
    }


def _exact_gradients(
    recipe: Recipe, placed: Placed, *, exact: int, seed: int
) -> Gradients:
    """Gradients over so many parts of the batch, with the same bits on any devices."""
    run = over_parts(loss_gradients(recipe), recipe, placed, parts=exact)

    def in_layout(params: Any, batch: Batch, step: Int[Array, ""]) -> tuple[Any, Sums]:
        with use_layout(placed, recipe.precision):
            keys = row_keys(seed, step, jax.tree.leaves(batch)[0].shape[0])
            return run(own_rows.widened(params), batch, keys)

    return in_layout


def over_parts(f: OnRows, recipe: Recipe, placed: Placed, *, parts: int) -> OnRows:
    """f of all rows, added up in one order over so many parts of the batch.

    Every part runs alone, so that it is computed in the same way whatever else its
    device computes.
    """
    axes, n = tuple(placed.layout.sizes), placed.layout.n_devices

    def device_sums(params, batch, keys):
        def part(rows):
            # What is fused across the borders of a part depends on their number.
            rows = jax.lax.optimization_barrier(rows)
            return jax.lax.optimization_barrier(f(params, *rows))

        found = sum_of_parts(
            part, (batch, keys), parts // n, known_at_run=jax.tree.leaves(params)[0]
        )
        return sum_over_devices(found, axes, n)

    def run(params, batch, keys):
        over_devices = own_rows.on_own_rows(
            device_sums, axes, names=recipe.anatomy.names, batch=batch,
            out_specs=PartitionSpec(),
        )  # fmt: skip
        return over_devices(params, batch, keys)

    return run


def row_keys(seed: int, step: Int[Array, ""], rows: int) -> jax.Array:
    """A random key for each row of the global batch [B], from seed, step and row."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def loss_gradients(recipe: Recipe) -> Gradients:
    """A function that gives gradients of one microbatch's summed loss, and its Sums.

    It is traced once, although a scan needs its output shapes first.
    """
    anatomy = recipe.anatomy

    def gradients(params, batch, keys):
        def loss(params):
            model = recipe.merge(anatomy, params)
            sums = sums_of(recipe.objective, model, batch, keys)
            _require_reports(recipe, sums)
            return sums.loss, sums

        return jax.grad(loss, has_aux=True)(params)

    return jax.jit(gradients, inline=True)


def _require_reports(recipe: Recipe, sums: Sums) -> None:
    """Refuses an objective to which routers report in vain.

    Raises:
      UserError: says what to write.
    """
    if recipe.model.has_experts and not sums.reports:
        kind = type(recipe.objective).__name__
        raise UserError(
            f"{type(recipe.model).__name__} has experts, and {kind} leaves out what "
            "their routers report: their losses would never reach a gradient. Write "
            "`x, aux = model(...)` and return `with_reports(sums, aux, weights)` "
            "(jaxpar.train.objective); with keys alone, so in training."
        )


def _accumulated(gradients: Gradients, microbatches: int) -> Gradients:
    """The same function of several microbatches, one after another, added up."""
    if microbatches == 1:
        return gradients

    def strided(x):
        # Row i goes to microbatch i % M, so that each device splits the rows that it
        # has, and sends none to another.
        x = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:])
        return jnp.moveaxis(x, 1, 0)

    def accumulated(params, batch, keys):
        def accumulate(total, microbatch):
            found = gradients(params, *microbatch)
            return jax.tree.map(jnp.add, total, found), None

        parts = jax.tree.map(strided, (batch, keys))
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradients, params, *first)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(accumulate, zero, parts)[0]

    return accumulated


def _axes_of_notes(metrics: dict[str, Any]) -> dict[str, tuple[str | None, ...]]:
    """The axes of metrics that are no scalars: notes on rows, stacked by layers."""

    def axes(name: str, ndim: int) -> tuple[str | None, ...]:
        known = (None, *ROWS) if LAYERS in name else ROWS
        return (*known, *(None,) * ndim)[:ndim]

    return {name: axes(name, x.ndim) for name, x in metrics.items()}
