"""The compiled steps: one of training, one of evaluation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jaxpar.errors import UserError
from jaxpar.nn.stack import all_stacks_run
from jaxpar.optim.optimizer import Optimizer
from jaxpar.partition import own_rows
from jaxpar.partition.fixed_order import compiler_options
from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.own_rows import Gathers
from jaxpar.partition.sharding import use_layout
from jaxpar.train.balance import router_metrics, with_moved_biases
from jaxpar.train.gradients import make_gradients, over_parts
from jaxpar.train.nonfinite import find_nonfinite, keep_where
from jaxpar.train.objective import Batch, Sums, is_own, sums_of
from jaxpar.train.state import Recipe, TrainState

Metrics = dict[str, jax.Array]
"""Scalars, by name; of the experts' loads an array."""


class TrainStep:
    """A compiled function (state, batch) -> (state, metrics); the state is donated.

    The learning rate is an argument of its program, computed before by a tiny one, so
    that experiments which differ in their schedules alone compile the same program.
    """

    def __init__(
        self, program: Any, schedule: Callable[[Any, Any], jax.Array], /
    ) -> None:
        self._program = program
        self._rate = jax.jit(lambda step, decay_from: schedule(step, decay_from))

    def __call__(self, state: Any, batch: Any) -> tuple[TrainState, Metrics]:
        rate = self._rate(state.step, state.decay_from)
        return self._program(state, batch, rate)

    def lower(self, state: Any, batch: Any) -> Any:
        """The program for these arguments, or shapes, as `jax.jit` lowers it.

        Raises:
          UserError: it is an exact step, of two programs.
        """
        if not hasattr(self._program, "lower"):
            raise UserError("A step with exact is two programs, not one to look at.")
        rate = jax.eval_shape(self._rate, state.step, state.decay_from)
        return self._program.lower(state, batch, rate)


def make_train_step(
    recipe: Recipe,
    placed: Placed,
    *,
    microbatches: int = 1,
    fsdp_gathers: Gathers = "microbatch",
    exact: int = 0,
    seed: int = 0,
) -> TrainStep:
    """The training step of a recipe.

    A step whose loss, gradients or updates are not finite changes neither parameters
    nor the optimizer's state; only `step` goes on.

    metrics: loss (nats per token), tokens (sum of weights), grad_norm (of the mean
    loss, before clipping), learning_rate, skipped (1 where the step was not applied,
    else 0), first_nonfinite (where skipped, the number of a name in
    jaxpar.train.nonfinite.value_names), and the means of the objective's own. Of a
    mixture of experts also those of jaxpar.train.balance.router_metrics.
    """
    target, optimizer = recipe.target(placed), recipe.optimizer(recipe.anatomy)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target), None
    update = make_update(optimizer, recipe.bias_rates)
    if exact:
        program = _exact_step(
            recipe, placed, update, exact=exact, seed=seed, out_shardings=shardings
        )
        return TrainStep(program, optimizer.schedule)
    gradients = make_gradients(
        recipe, placed, microbatches=microbatches, fsdp_gathers=fsdp_gathers, seed=seed
    )

    def step(state: TrainState, batch: Batch, rate: jax.Array) -> tuple[Any, Metrics]:
        found = gradients(state.params, batch, state.step)
        with use_layout(placed, recipe.precision):
            return update(state, found, rate)

    program = jax.jit(step, donate_argnums=0, out_shardings=shardings)
    return TrainStep(program, optimizer.schedule)


def _exact_step(
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
        make_gradients(recipe, placed, exact=exact, seed=seed),
        out_shardings=placed.replicated,
        compiler_options=options,
    )

    def device_update(*args):
        with use_layout(placed, recipe.precision):
            return own_rows.on_every_device(update)(*args)

    apply = jax.jit(
        device_update,
        donate_argnums=0,
        out_shardings=out_shardings,
        compiler_options=options,
    )
    return lambda state, batch, rate: apply(
        state, gradients(state.params, batch, state.step), rate
    )


def make_update(
    optimizer: Optimizer, rates: Mapping[str, float]
) -> Callable[..., tuple[TrainState, Metrics]]:
    """A function (state, (gradients, Sums), learning rate) -> (state, metrics).

    rates: by which routers' biases move, by path.
    """

    def update(
        state: TrainState, found: tuple[Any, Sums], rate: jax.Array
    ) -> tuple[TrainState, Metrics]:
        grads, sums = found
        scale = per_weight(sums)
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, rate
        )
        updates = with_moved_biases(updates, sums.reports, rates)
        params = optax.apply_updates(state.params, updates)
        loss, norm = sums.loss * scale, optax.tree.norm(grads)
        skipped, first = find_nonfinite(grads, updates, norm=norm, loss=loss)
        params, opt_state = keep_where(
            skipped, (state.params, state.opt_state), (params, opt_state)
        )
        metrics = {
            "loss": loss,
            "tokens": sums.weight,
            "grad_norm": norm,
            "learning_rate": rate,
            "skipped": skipped,
            "first_nonfinite": first,
            **{name: value * scale for name, value in sums.metrics.items()},
            **router_metrics(sums.reports),
        }
        new = TrainState(state.step + 1, params, opt_state, state.decay_from)
        return new, metrics

    return update


def make_forward(
    recipe: Recipe, placed: Placed | Layout
) -> Callable[[Any, Batch], Sums]:
    """A jitted function (params, batch) -> the objective's sums, without dropout."""
    anatomy = recipe.anatomy

    def forward(params: Any, batch: Batch) -> Sums:
        with use_layout(placed, recipe.precision):
            return sums_of(recipe.objective, recipe.merge(anatomy, params), batch, None)

    return jax.jit(forward)


def make_eval_step(
    recipe: Recipe, placed: Placed, *, exact: int = 0
) -> Callable[[Any, Batch], Metrics]:
    """A jitted function (params, batch) -> sums over the batch, without dropout.

    loss and weight are of the tokens' cross-entropy (without loss where the objective
    has none); of an objective other than CausalLM there are its own, too: objective
    and objective_weight. It runs the model twice then.
    """
    anatomy, objective = recipe.anatomy, recipe.objective

    def scores(params: Any, batch: Batch, _: None) -> Metrics:
        model = recipe.merge(anatomy, params)
        own = objective(model, batch, None)
        if not is_own(objective):
            return {"loss": own.loss, "weight": own.weight}
        tokens = objective.cross_entropy(model, batch)
        found = {"objective": own.loss, "objective_weight": own.weight}
        if tokens is None:
            return {"weight": own.weight, **found}
        return {"loss": tokens.loss, "weight": tokens.weight, **found}

    def over_rows(params: Any, batch: Batch) -> Metrics:
        def over(axes: tuple[str, ...]) -> Metrics:
            if not axes:
                return scores(params, batch, None)
            run = own_rows.on_own_rows(
                lambda *args: own_rows.sum_over_rows(scores(*args)),
                axes, names=anatomy.names, batch=batch, out_specs=PartitionSpec(),
            )  # fmt: skip
            with all_stacks_run(anatomy.names):
                return run(params, batch, None)

        per_token = recipe.per_token
        return own_rows.over_row_axes(over, placed.layout, per_token=per_token)

    def step(params: Any, batch: Batch) -> Metrics:
        with use_layout(placed, recipe.precision):
            if exact:
                run = over_parts(scores, recipe, placed, parts=exact)
                return run(params, batch, None)
            return over_rows(params, batch)

    options = compiler_options(placed.platform) if exact else None
    return jax.jit(step, compiler_options=options)


def per_weight(sums: Sums) -> Float[Array, ""]:
    """What turns sums into means: 1 / weight, or 0 where every weight is 0."""
    is_positive = sums.weight > 0
    return jnp.where(is_positive, 1 / jnp.where(is_positive, sums.weight, 1), 0)
