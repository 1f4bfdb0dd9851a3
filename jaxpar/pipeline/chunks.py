"""The layers of a stage: chunks of them, one for each round of a circular pipeline."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxpar.pipeline.ticks import Schedule


def rematerialised(block, policy) -> Callable:
    """The block, of which the policy says what is kept for the backward pass."""
    if policy is None:
        return block
    return jax.checkpoint(block, policy=policy, prevent_cse=False)


def in_order(block, blocks, x, per_row, *, first) -> tuple[jax.Array, Any]:
    """These layers one after another; first: the number of the first of them."""

    def body(x, piece):
        return block(*piece, x, *per_row)

    n = jax.tree.leaves(blocks)[0].shape[0]
    return jax.lax.scan(body, x, (first + jnp.arange(n), blocks))


def of_chunks(
    block, blocks, stage, schedule: Schedule, remat, *, one_round: bool = False
) -> Callable:
    """A function (round, x, per_row) -> (x, aux) of a stage's layers of that round.

    blocks: all layers of the stage; with one_round only those of the round that it is
    called for.
    """
    n = jax.tree.leaves(blocks)[0].shape[0] // (1 if one_round else schedule.n_rounds)
    if schedule.n_rounds == 1:
        block = rematerialised(block, remat)
        return lambda _, x, mine: in_order(block, blocks, x, mine, first=stage * n)
    policy = remat or _all_but_cuts
    block = functools.partial(rematerialised(_reading_again(block), policy), blocks)

    def run(number, x, mine):
        start = 0 if one_round else number * n
        chunk = jax.tree.map(
            lambda w: jax.lax.dynamic_slice_in_dim(w, start, n), blocks
        )
        first = (number * schedule.n_stages + stage) * n
        return in_order(block, (start + jnp.arange(n), chunk), x, mine, first=first)

    return run


def _reading_again(block) -> Callable:
    """The block, which reads its weights from all those of the stage.

    Its own piece only takes their gradient. Else the pieces of each tick would be kept
    for the backward pass: copies of the stage's weights, one for each microbatch.
    """

    def run(blocks, layer, piece, x, *per_row):
        place, weights = piece
        return block(layer, _read(weights, blocks, place), x, *per_row)

    return run


def _all_but_cuts(primitive, *_, **__) -> bool:
    """A policy that keeps everything but what `_cut` gives."""
    return primitive not in (jax.lax.dynamic_slice_p, jax.lax.reshape_p)


def _cut(blocks, place) -> Any:
    """What stands at a place of all blocks."""

    def of(w):
        start = (place, *(jnp.zeros_like(place),) * (w.ndim - 1))
        return jax.lax.dynamic_slice(w, start, (1, *w.shape[1:])).reshape(w.shape[1:])

    return jax.tree.map(of, blocks)


@jax.custom_jvp
def _read(piece, blocks, place) -> Any:
    """What stands at a place of all blocks; its derivative is that of `piece`."""
    return _cut(blocks, place)


@_read.defjvp
def _(primals, tangents) -> tuple[Any, Any]:
    _, blocks, place = primals
    # Not `_read` itself: a rematerialisation policy would not see what it does.
    return _cut(blocks, place), tangents[0]
