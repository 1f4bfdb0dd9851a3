"""A circular pipeline for which fsdp gathers a stage's weights once a round.

A stage then holds the chunk of layers that it computes whole, and no other. Stages
begin a round one after another, so each of them gathers at a tick of its own. That is
no collective that some devices miss: those that share a chunk are of one stage.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.partition.own_rows import gathered
from jaxpar.partition.sharding import current_context, enter, in_this_context
from jaxpar.pipeline.ticks import Schedule


def gathering_by_round(
    tick: Callable, blocks: Any, carry: Any, stage: jax.Array, schedule: Schedule
) -> tuple[Any, Any]:
    """Scans tick(chunk, carry, t) -> (carry, aux) over all ticks of a schedule.

    chunk: the layers of the stage's round at tick t, gathered. The backward pass goes
    through the ticks the other way, gathers each chunk where its round ends, and
    reduces its gradient where it began. Between the passes only the last chunk is kept.
    """
    context = dataclasses.replace(current_context(), gathered=True)

    def on_whole(chunk, carry, t):
        with enter(context):
            return tick(chunk, carry, t)

    @in_this_context
    def gather(blocks, t):
        number = schedule.round_of(jnp.clip(t - stage, 0, schedule.n_turns - 1))

        def of_round(w):
            n = len(w) // schedule.n_rounds
            return jax.lax.dynamic_slice_in_dim(w, number * n, n)

        return gathered(jax.tree.map(of_round, blocks))

    chunk = jax.eval_shape(gather, blocks, 0)
    # What a tick closes over may have gradients, too.
    on_whole, closed = jax.closure_convert(on_whole, chunk, carry, 0)
    passes = _Passes(on_whole, gather, stage, schedule)

    @jax.custom_vjp
    def run(*args):
        return passes.forward(*args)[0]

    run.defvjp(passes.forward, passes.backward)
    return run(blocks, carry, closed)


@dataclasses.dataclass(frozen=True)
class _Passes:
    """The forward pass through all ticks, and the backward one."""

    tick: Callable
    """(chunk, carry, t, *closed) -> (carry, aux)."""
    gather: Callable
    """(blocks, t) -> the chunk of the stage's round at tick t."""
    stage: jax.Array
    schedule: Schedule

    def forward(self, blocks, carry, closed):
        """((carry, aux of all ticks), what the backward pass needs)."""

        def step(carry, t):
            chunk, carry = carry
            chunk, late = jax.lax.cond(
                self._has_turn(t, of_round=0) & (t > self.stage),
                lambda: (self.gather(blocks, t), t < 0),
                lambda: (chunk, t < -1),
            )
            t = _after(late, t)
            (carry, aux), pull_back = jax.vjp(
                lambda chunk, carry, closed: self.tick(chunk, carry, t, *closed),
                chunk, carry, closed,
            )  # fmt: skip
            return (chunk, carry), (aux, _without(pull_back, (chunk, closed)))

        ticks = jnp.arange(self.schedule.n_ticks)
        start = self.gather(blocks, 0), carry
        (chunk, carry), (aux, pull_backs) = jax.lax.scan(step, start, ticks)
        return (carry, aux), (blocks, closed, pull_backs, chunk)

    def backward(self, needed, grads):
        """The gradients of blocks, carry and what a tick closes over."""
        blocks, closed, pull_backs, last = needed
        carry, aux = grads
        end = self.stage + self.schedule.n_turns - 1

        def reduced(of_chunk, of_blocks, t):
            pull_back = jax.vjp(lambda blocks: self.gather(blocks, t), blocks)[1]
            return _added(of_blocks, *pull_back(_cotangents(of_chunk, last)))

        def step(state, each):
            chunk, of_chunk, of_blocks, carry, of_closed = state
            t, pull_back, of_aux = each

            enters = self._has_turn(t, of_round=self.schedule.n_stages - 1) & (t < end)
            chunk, of_blocks, late = jax.lax.cond(
                enters,
                lambda: (
                    self.gather(blocks, t),
                    reduced(of_chunk, of_blocks, t + 1),
                    t < 0,
                ),
                lambda: (chunk, of_blocks, t < -1),
            )
            of_chunk = [jnp.where(enters, 0, x) for x in of_chunk]
            carry, of_aux = _after(late, (carry, of_aux))
            of_aux = _cotangents(of_aux, jax.tree.map(lambda x: x[0], aux))
            pull_back = _with(pull_back, (chunk, closed))
            more, carry, others = pull_back((carry, of_aux))
            of_chunk, of_closed = _added(of_chunk, more), _added(of_closed, others)
            return (chunk, of_chunk, of_blocks, carry, of_closed), None

        start = last, _zeros(last), _zeros(blocks), carry, _zeros(closed)
        each = jnp.arange(self.schedule.n_ticks), pull_backs, _floats(aux)
        found, _ = jax.lax.scan(step, start, each, reverse=True)
        _, of_chunk, of_blocks, carry, of_closed = found
        of_blocks = reduced(of_chunk, of_blocks, 0)
        return _cotangents(of_blocks, blocks), carry, _cotangents(of_closed, closed)

    def _has_turn(self, t, of_round):
        """Whether the stage takes its turn of this number in some round at tick t."""
        S, turn = self.schedule.n_stages, t - self.stage
        return (turn >= 0) & (turn < self.schedule.n_turns) & (turn % S == of_round)


def _after(late: jax.Array, tree: Any) -> Any:
    """Arrays, which are the same, but not there before `late`, which is never true.

    On CPUs XLA starts what comes after a conditional before the collectives in it have
    begun; devices that begin collectives in another order wait for each other. Only
    data makes it wait: late comes out of the conditional.
    """
    return jax.tree.map(lambda x: x + late.astype(x.dtype), tree)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Given:
    """Stands for an array that a backward pass is given, and that is not kept."""

    number: int


def _without(pull_back: Any, given: Any) -> Any:
    """A function that jax.vjp returned, less these of the arrays that it keeps."""
    numbers = {id(x): _Given(i) for i, x in enumerate(jax.tree.leaves(given))}
    return jax.tree.map(lambda x: numbers.get(id(x), x), pull_back)


def _with(pull_back: Any, given: Any) -> Callable:
    """The function again, with these arrays."""
    arrays = jax.tree.leaves(given)
    return jax.tree.map(
        lambda x: arrays[x.number] if isinstance(x, _Given) else x,
        pull_back,
        is_leaf=lambda x: isinstance(x, _Given),
    )


def _floats(tree: Any) -> list[jax.Array]:
    """The arrays of a tree that have gradients."""
    leaves = jax.tree.leaves(tree)
    return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]


def _zeros(tree: Any) -> list[jax.Array]:
    """The gradients of a tree before any are added."""
    return [jnp.zeros_like(x) for x in _floats(tree)]


def _added(total: list[jax.Array], grads: Any) -> list[jax.Array]:
    """A sum of gradients, and some more of them."""
    return [a + b for a, b in zip(total, _floats(grads), strict=True)]


def _cotangents(grads: list[jax.Array], of: Any) -> Any:
    """Gradients as a tree; of whole numbers, as JAX wants it, zeros of type float0."""
    rest = iter(grads)

    def cotangent(x):
        is_float = jnp.issubdtype(x.dtype, jnp.inexact)
        return next(rest) if is_float else np.zeros(x.shape, jax.dtypes.float0)

    return jax.tree.map(cotangent, of)
