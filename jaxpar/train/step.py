"""The compiled steps: one of training, one of evaluation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxpar.partition.layout import Placed
from jaxpar.partition.sharding import constrain, use_layout
from jaxpar.train.nonfinite import find_nonfinite, keep_where
from jaxpar.train.objective import Batch, Sums, is_own, sums_of
from jaxpar.train.state import Recipe, TrainState

Metrics = dict[str, jax.Array]
"""Scalars, by name."""


def row_keys(seed: int, step: Int[Array, ""], rows: int) -> jax.Array:
    """A random key for each row of the global batch [B], from seed, step and row."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def make_gradients(
    recipe: Recipe, placed: Placed, *, microbatches: int = 1, seed: int = 0
) -> Callable[[Any, Batch, Any], tuple[Any, Sums]]:
    """A function (params, batch, step) -> (gradients of the summed loss, Sums).

    microbatches: parts of the batch whose gradients are accumulated one after another.
    """
    anatomy = recipe.anatomy

    def loss_gradients(params, microbatch, keys):
        def loss(params):
            sums = sums_of(
                recipe.objective, recipe.merge(anatomy, params), microbatch, keys
            )
            return sums.loss, sums

        return jax.grad(loss, has_aux=True)(params)

    # Traced once, although a scan over microbatches needs its output shapes first.
    loss_gradients = jax.jit(loss_gradients, inline=True)

    def gradients(params, batch, step):
        rows = jax.tree.leaves(batch)[0].shape[0]
        keys = row_keys(seed, step, rows)
        if microbatches == 1:
            return loss_gradients(params, batch, keys)

        def strided(x):
            # Row i goes to microbatch i % M, so that each device splits the rows that
            # it has, and sends none to another.
            x = x.reshape(rows // microbatches, microbatches, *x.shape[1:])
            return jnp.moveaxis(x, 1, 0)

        def accumulate(total, microbatch):
            found = loss_gradients(params, *microbatch)
            return jax.tree.map(jnp.add, total, found), None

        parts = jax.tree.map(strided, (batch, keys))
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(loss_gradients, params, *first)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(accumulate, zero, parts)[0]

    def in_layout(params: Any, batch: Batch, step: Int[Array, ""]) -> tuple[Any, Sums]:
        with use_layout(placed, recipe.precision):
            batch = {
                name: constrain(x, "batch", *("seq",) * (x.ndim - 1))
                for name, x in batch.items()
            }
            return gradients(params, batch, step)

    return in_layout


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
        """The program for these arguments, or shapes, as `jax.jit` lowers it."""
        rate = jax.eval_shape(self._rate, state.step, state.decay_from)
        return self._program.lower(state, batch, rate)


def make_train_step(
    recipe: Recipe, placed: Placed, *, microbatches: int = 1, seed: int = 0
) -> TrainStep:
    """The training step of a recipe.

    A step whose loss, gradients or updates are not finite changes neither parameters
    nor the optimizer's state; only `step` goes on.

    metrics: loss (nats per token), tokens (sum of weights), grad_norm (of the mean
    loss, before clipping), learning_rate, skipped (1 where the step was not applied,
    else 0), first_nonfinite (where skipped, the number of a name in
    jaxpar.train.nonfinite.value_names), and the means of the objective's own.
    """
    anatomy, target = recipe.anatomy, recipe.target(placed)
    optimizer = recipe.optimizer(anatomy)
    gradients = make_gradients(recipe, placed, microbatches=microbatches, seed=seed)

    def step(state: TrainState, batch: Batch, rate: jax.Array) -> tuple[Any, Metrics]:
        grads, sums = gradients(state.params, batch, state.step)
        with use_layout(placed, recipe.precision):
            scale = mean_weight(sums)
            grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
            updates, opt_state = optimizer.update(
                grads, state.opt_state, state.params, rate
            )
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
        }
        new = TrainState(state.step + 1, params, opt_state, state.decay_from)
        return new, metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    program = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    return TrainStep(program, optimizer.schedule)


def make_forward(recipe: Recipe, placed: Placed) -> Callable[[Any, Batch], Sums]:
    """A jitted function (params, batch) -> the objective's sums, without dropout."""
    anatomy = recipe.anatomy

    def forward(params: Any, batch: Batch) -> Sums:
        with use_layout(placed, recipe.precision):
            return sums_of(recipe.objective, recipe.merge(anatomy, params), batch, None)

    return jax.jit(forward)


def make_eval_step(recipe: Recipe, placed: Placed) -> Callable[[Any, Batch], Metrics]:
    """A jitted function (params, batch) -> sums over the batch, without dropout.

    loss and weight are of the tokens' cross-entropy (without loss where the objective
    has none); of an objective other than CausalLM there are its own, too: objective
    and objective_weight. It runs the model twice then.
    """
    anatomy, objective = recipe.anatomy, recipe.objective

    def step(params: Any, batch: Batch) -> Metrics:
        with use_layout(placed, recipe.precision):
            model = recipe.merge(anatomy, params)
            own = objective(model, batch, None)
            if not is_own(objective):
                return {"loss": own.loss, "weight": own.weight}
            tokens = objective.cross_entropy(model, batch)
        found = {"objective": own.loss, "objective_weight": own.weight}
        if tokens is None:
            return {"weight": own.weight, **found}
        return {"loss": tokens.loss, "weight": tokens.weight, **found}

    return jax.jit(step)


def mean_weight(sums: Sums) -> Float[Array, ""]:
    """What turns sums into means: 1 / weight, or 0 where every weight is 0."""
    is_positive = sums.weight > 0
    return jnp.where(is_positive, 1 / jnp.where(is_positive, sums.weight, 1), 0)
