"""A circular pipeline for which fsdp gathers a stage's weights once a round.

A stage then has, gathered, only the chunk of layers that it is computing. Stages enter
a round one after another, so each gathers at a tick of its own, in a conditional. All
devices of a group that gathers take the same branch: they are of one stage.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxpar.partition.own_rows import gathered
from jaxpar.partition.sharding import current_context, enter, in_this_context
from jaxpar.pipeline.ticks import Schedule


def gathering_by_round(
    tick: Callable, blocks: Any, carry: Any, stage: jax.Array, schedule: Schedule
) -> tuple[Any, Any]:
    """Scans tick(chunk, carry, t) -> (carry, aux) over all ticks of a schedule.

    chunk: the layers of the stage's round at tick t, gathered. The backward pass goes
    through the ticks the other way, gathers each chunk when it enters a round at its
    end, and reduces the chunk's gradient when it leaves the round. Between the passes
    only the last chunk is kept.
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

    ticks = jnp.arange(schedule.n_ticks)
    chunk = jax.eval_shape(gather, blocks, ticks[0])
    on_whole, closed = _without_closure(on_whole, chunk, carry, ticks[0])
    passes = _Passes(on_whole, gather, ticks, stage, schedule)

    @jax.custom_vjp
    def run(*args):
        return passes.forward(*args)[0]

    run.defvjp(passes.forward, passes.backward)
    return run(blocks, carry, closed)


@dataclasses.dataclass(frozen=True)
class _Passes:
    """The forward pass through all ticks, and the backward one."""

    tick: Callable
    """(closed, chunk, carry, t) -> (carry, aux)."""
    gather: Callable
    """(blocks, t) -> the chunk of the stage's round at tick t."""
    ticks: jax.Array
    stage: jax.Array
    schedule: Schedule

    def forward(self, blocks, carry, closed):
        """((carry, aux of all ticks), what the backward pass needs)."""

        def step(state, t):
            chunk, carry = state
            # The first chunk is there before the first tick.
            chunk, token = jax.lax.cond(
                self._has_turn(t, 0) & (t > self.stage),
                lambda: (self.gather(blocks, t), t < 0),
                lambda: (chunk, t < -1),
            )
            t = _after(token, t)
            (carry, aux), pull_back = jax.vjp(
                lambda closed, chunk, carry: self.tick(closed, chunk, carry, t),
                closed, chunk, carry,
            )  # fmt: skip
            return (chunk, carry), (aux, _without(pull_back, (closed, chunk)))

        state = self.gather(blocks, self.ticks[0]), carry
        (chunk, carry), (aux, pull_backs) = jax.lax.scan(step, state, self.ticks)
        return (carry, aux), (blocks, closed, chunk, pull_backs)

    def backward(self, needed, grads):
        """The gradients of blocks, carry and what a tick closes over."""
        blocks, closed, last, pull_backs = needed
        S, end = self.schedule.n_stages, self.stage + self.schedule.n_turns - 1

        def reduced(of_chunk, of_blocks, t):
            pull_back = jax.vjp(lambda blocks: self.gather(blocks, t), blocks)[1]
            return _added(of_blocks, *pull_back(_cotangents(of_chunk, last)))

        def step(state, t):
            chunk, of_chunk, of_blocks, carry, of_closed = state
            enters = self._has_turn(t, S - 1) & (t < end)
            chunk, of_blocks, token = jax.lax.cond(
                enters,
                lambda: (
                    self.gather(blocks, t),
                    reduced(of_chunk, of_blocks, t + 1),
                    t < 0,
                ),
                lambda: (chunk, of_blocks, t < -1),
            )
            of_chunk = [jnp.where(enters, 0, x) for x in of_chunk]
            t, carry = _after(token, (t, carry))
            pull_back, aux = jax.tree.map(lambda x: x[t], (pull_backs, _floats(of_aux)))
            pull_back = _with(pull_back, (closed, chunk))
            found = pull_back((carry, _cotangents(aux, aux_of_tick)))
            of_closed, of_chunk = (
                _added(of_closed, found[0]),
                _added(of_chunk, found[1]),
            )
            return (chunk, of_chunk, of_blocks, found[2], of_closed), None

        carry, of_aux = grads
        aux_of_tick = jax.tree.map(lambda x: x[0], of_aux)
        state = last, _zeros(last), _zeros(blocks), carry, _zeros(closed)
        state, _ = jax.lax.scan(step, state, self.ticks, reverse=True)
        _, of_chunk, of_blocks, carry, of_closed = state
        of_blocks = reduced(of_chunk, of_blocks, self.ticks[0])
        return _cotangents(of_blocks, blocks), carry, _cotangents(of_closed, closed)

    def _has_turn(self, t, place):
        """Whether the stage's turn at tick t is the one at this place of some round."""
        S, turn = self.schedule.n_stages, t - self.stage
        return (turn >= 0) & (turn < self.schedule.n_turns) & (turn % S == place)


def _after(token: jax.Array, tree: Any) -> Any:
    """Arrays as they are, which are there only when the token is, which is false.

    XLA's runtime for CPUs starts what stands behind a conditional before collectives
    in it have begun, and devices that begin collectives in another order wait for each
    other. Only data makes it wait: the token comes out of the conditional, from tests
    that no tick passes, another one in each branch so that XLA cannot know the result.
    """
    return jax.tree.map(lambda x: x + token.astype(x.dtype), tree)


def _without_closure(f: Callable, *args: Any) -> tuple[Callable, list[jax.Array]]:
    """f, which is given as its first argument all arrays that it closes over; and they.

    They may have gradients; and arrays that stay closed over would be kept anew for the
    backward pass of each tick.
    """
    jaxpr, shapes = jax.make_jaxpr(f, return_shape=True)(*args)

    def run(closed, *args):
        call = core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr.jaxpr, closed))
        return jax.tree.unflatten(
            jax.tree.structure(shapes), call(*jax.tree.leaves(args))
        )

    return run, jaxpr.consts


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
