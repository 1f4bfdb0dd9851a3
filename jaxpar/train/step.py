"""The compiled steps: one update, one evaluation; pure, sharded, donated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxpar.partition.layout import Placed
from jaxpar.partition.sharding import constrain, use_layout
from jaxpar.train.objective import Batch, Sums
from jaxpar.train.state import Recipe, TrainState


def row_keys(seed: int, step: jax.Array, rows: int) -> jax.Array:
    """One key for each row of the global batch: fold_in(seed, step, row)."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))


def make_gradients(
    recipe: Recipe, placed: Placed, *, microbatches: int = 1, seed: int = 0
) -> Callable[[Any, Batch, Any], tuple[Any, Sums]]:
    """A function (params, batch, step) -> (gradients of the summed loss, Sums)."""
    anatomy = recipe.anatomy

    def of_part(params, part, keys):
        def loss(params):
            sums = recipe.objective(recipe.merge(anatomy, params), part, keys)
            return sums.loss, sums

        return jax.grad(loss, has_aux=True)(params)

    # Traced once, although a loop over microbatches first asks for its shapes.
    of_part = jax.jit(of_part, inline=True)

    def gradients(params, batch, step):
        rows = jax.tree.leaves(batch)[0].shape[0]
        keys = row_keys(seed, step, rows)
        if microbatches == 1:
            return of_part(params, batch, keys)

        def strided(x):
            # Row i is in part i mod M, so that splitting a sharded batch sends nothing.
            x = x.reshape(rows // microbatches, microbatches, *x.shape[1:])
            return jnp.moveaxis(x, 1, 0)

        def body(total, part):
            found = of_part(params, *part)
            return jax.tree.map(jnp.add, total, found), None

        parts = jax.tree.map(strided, (batch, keys))
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(of_part, params, *first)
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(body, zero, parts)[0]

    def in_layout(params, batch, step):
        with use_layout(placed, recipe.precision):
            batch = {
                name: constrain(x, "batch", *("seq",) * (x.ndim - 1))
                for name, x in batch.items()
            }
            return gradients(params, batch, step)

    return in_layout


def make_train_step(
    recipe: Recipe, placed: Placed, *, microbatches: int = 1, seed: int = 0
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """A jitted (state, batch) -> (state, metrics); the state is donated."""
    anatomy, target = recipe.anatomy, recipe.target(placed)
    optimizer = recipe.optimizer(anatomy)
    gradients = make_gradients(recipe, placed, microbatches=microbatches, seed=seed)

    def step(state: TrainState, batch) -> tuple[TrainState, dict[str, jax.Array]]:
        grads, sums = gradients(state.params, batch, state.step)
        with use_layout(placed, recipe.precision):
            scale = mean_weight(sums)
            grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
            rate = optimizer.schedule(state.step, state.decay_from)
            updates, opt_state = optimizer.update(
                grads, state.opt_state, state.params, rate
            )
            params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": sums.loss * scale,
            "tokens": sums.weight,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": rate,
            **{name: value * scale for name, value in sums.metrics.items()},
        }
        new = TrainState(state.step + 1, params, opt_state, state.decay_from)
        return new, metrics

    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def make_eval_step(
    recipe: Recipe, placed: Placed
) -> Callable[[Any, Batch], dict[str, jax.Array]]:
    """A jitted (params, batch) -> {"loss", "weight"}: sums, without dropout."""
    anatomy = recipe.anatomy

    def step(params, batch) -> dict[str, jax.Array]:
        with use_layout(placed, recipe.precision):
            sums = recipe.objective(recipe.merge(anatomy, params), batch, None)
        return {"loss": sums.loss, "weight": sums.weight}

    return jax.jit(step)


def mean_weight(sums: Sums) -> jax.Array:
    """1 / weight, and 0 where no token counts."""
    some = sums.weight > 0
    return jnp.where(some, 1 / jnp.where(some, sums.weight, 1), 0)
