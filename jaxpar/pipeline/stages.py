"""Runs a stack of layers: one after another, or as a pipeline over `stage`.

The pipeline is one program that all devices run (GPipe: Huang et al., 2019, as SPMD: Xu
et al., 2021, section 3.3): each holds the layers of its stage, and at each tick sends
what it has computed to the next stage. From the last stage it comes back to the first
one, in a circular pipeline for the next round. The rows of a batch lie on all stages:
inputs travel down to the first stage in a ring of their own, and the places that they
leave in it take the outputs home.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpar.errors import UserError, one_line
from jaxpar.partition.layout import STAGE
from jaxpar.partition.manual_pieces import permute
from jaxpar.partition.own_rows import has_slices
from jaxpar.partition.sharding import current_context
from jaxpar.pipeline.chunks import in_order, of_chunks, rematerialised
from jaxpar.pipeline.rounds import gathering_by_round
from jaxpar.pipeline.ticks import Schedule, microbatches

X = ("batch", "seq", "embed")
"""The axes of what goes through a stack."""


def stages(
    block: Callable[..., tuple[jax.Array, Any]],
    blocks: Any,
    x: Float[Array, "B T D"],
    *per_row: Any,
    remat: Callable[..., bool] | None = None,
) -> tuple[Float[Array, "B T D"], Any]:
    """Runs block(layer, piece, x, *per_row) -> (x, aux) for each layer, in order.

    `blocks` is any pytree stacked by layers, of which a block gets its own piece beside
    its layer's number; every block reads `per_row`, whose arrays have a row of the
    batch each. remat: what is kept of a block for the backward pass, as
    `jax.checkpoint` takes it; None keeps everything. Returns x and the aux of all
    layers, stacked.
    """
    context = current_context()
    if STAGE in context.manual:
        return _pipeline(block, blocks, x, per_row, remat)
    return in_order(rematerialised(block, remat), blocks, x, per_row, first=0)


def _pipeline(block, blocks, x, per_row, remat) -> tuple[jax.Array, Any]:
    """The same, where each device of `stage` has its own rows and its own layers."""
    schedule = _schedule_of(len(x))
    stage = jax.lax.axis_index(STAGE)
    _require_rows(len(x), per_row)
    inputs = x.reshape(schedule.n_groups, -1, *x.shape[1:])
    travelling = _for_all_stages(per_row, schedule)

    def tick(run_chunk, carry, t):
        ring, received, outputs = carry
        ring, outputs = _at_home(t, ring, inputs, outputs, schedule)
        # In later rounds the first stage goes on with what the last one has sent.
        enters = (stage == 0) & (schedule.round_of(t) == 0)
        to_do = jnp.where(enters, ring, received)
        ring = jnp.where(enters, received, ring)
        turn = t - stage
        counts = (turn >= 0) & (turn < schedule.n_turns)
        to_do = jnp.where(counts, to_do, _of_no_account(inputs))
        turn = jnp.clip(turn, 0, schedule.n_turns - 1)
        number = schedule.microbatch_of(turn)
        mine = jax.tree.map(lambda rows: rows[number], travelling)
        with _rows_explained(len(to_do), len(x)):
            y, aux = run_chunk(schedule.round_of(turn), to_do, mine)
        return (_turned(ring, t, schedule), _send(y, 1), outputs), aux

    nothing = _nothing_yet(inputs)
    carry = nothing, nothing, jnp.zeros_like(inputs)
    chunks = functools.partial(
        of_chunks, block, stage=stage, schedule=schedule, remat=remat
    )
    if schedule.n_rounds > 1 and current_context().by_round and has_slices(blocks):
        carry, aux = gathering_by_round(
            lambda chunk, *args: tick(chunks(chunk, one_round=True), *args),
            blocks,
            carry,
            stage,
            schedule,
        )
    else:
        carry, aux = jax.lax.scan(
            functools.partial(tick, chunks(blocks)), carry, jnp.arange(schedule.n_ticks)
        )
    ring, received, outputs = carry
    # The last microbatch has reached the first stage, and goes home from there.
    ring = _send(jnp.where(stage == 0, received, ring), -1)
    end = (schedule.n_groups + 1) * schedule.period
    _, outputs = _at_home(end, ring, inputs, outputs, schedule)
    return outputs.reshape(x.shape), _stacked(aux, stage, schedule)


def _schedule_of(rows: int) -> Schedule:
    """The schedule of a device's rows under the layout in force."""
    context, S = current_context(), jax.lax.axis_size(STAGE)
    if (layout := context.layout) is None:
        return Schedule(S, 1)
    n = microbatches(layout, context.microbatches, rows * layout.batch_divisor)
    return Schedule(S, math.gcd(rows, n // layout.n_stages), layout.n_rounds)


@contextlib.contextmanager
def _rows_explained(n: int, of: int) -> Iterator[None]:
    """What a block raises that is given n rows, of those that its model is given."""
    try:
        yield
    except UserError:  # It says what is wrong.
        raise
    except (TypeError, ValueError) as error:
        raise UserError(
            f"With stage, a block sees the {n} rows of one microbatch, not all {of}: "
            "arrays with rows that it reads are handed to nn.stack.scan after x, not "
            f"closed over ({one_line(error)})."
        ) from error


def _require_rows(n: int, per_row: Any) -> None:
    """Refuses what blocks read that has no row for each of x: it could not travel."""
    for shape in (leaf.shape for leaf in jax.tree.leaves(per_row)):
        if shape[:1] != (n,):
            raise UserError(
                "With stage, arrays that nn.stack.scan hands to all blocks have the "
                f"{n} rows of x first; one has the shape {shape}. Let `run` close over "
                "what is the same for all rows."
            )


def _of_no_account(inputs: jax.Array) -> jax.Array:
    """What a stage computes on in a tick of the bubble.

    Real rows: their gradient is zero only where all that they come to is finite.
    """
    return jax.lax.stop_gradient(inputs[0])


def _nothing_yet(inputs: jax.Array) -> jax.Array:
    """What a stage has received before the first tick."""
    return jnp.zeros_like(inputs[0])


def _at_home(t, ring, inputs, outputs, schedule) -> tuple[jax.Array, jax.Array]:
    """The ring and the outputs, once the ring's places have been emptied and filled.

    When a group begins, each of the outputs in the ring is where its rows live: those
    of the group before the last one. The inputs of the group then enter the ring.
    """
    group, rest = t // schedule.period, t % schedule.period
    last = schedule.n_groups - 1
    done = jnp.clip(group - 2, 0, last)
    kept = jnp.where((rest == 0) & (group >= 2), ring, outputs[done])
    outputs = jax.lax.dynamic_update_index_in_dim(outputs, kept, done, 0)
    ring = jnp.where(rest == 0, inputs[jnp.clip(group, 0, last)], ring)
    return ring, outputs


def _turned(ring: jax.Array, t: jax.Array, schedule: Schedule) -> jax.Array:
    """The ring one place further; it rests in rounds in which nothing enters it.

    All devices turn it, or none.
    """
    if schedule.n_rounds == 1:
        return _send(ring, -1)
    turns = schedule.round_of(t) == 0
    return jax.lax.cond(turns, lambda ring: _send(ring, -1), lambda ring: ring, ring)


def _send(x: jax.Array, by: int) -> jax.Array:
    """What the stage before this one has (by=1), or the one after it (by=-1)."""
    return permute(x, X, STAGE, by, current_context().automatic)


def _for_all_stages(per_row: Any, schedule: Schedule) -> Any:
    """Arrays of this device's rows as those of all stages: [microbatches, rows, ...].

    Every stage reads the places of the tokens that come by; they are a few numbers
    beside the tokens' activations.
    """

    def gathered(rows):
        if jnp.issubdtype(rows.dtype, jax.dtypes.prng_key):
            kind = jax.random.key_impl(rows)
            return jax.random.wrap_key_data(
                gathered(jax.random.key_data(rows)), impl=kind
            )
        rows = rows.reshape(schedule.n_groups, -1, *rows.shape[1:])
        rows = jax.lax.all_gather(rows, STAGE, axis=1)  # [groups, stages, rows, ...]
        return rows.reshape(schedule.n_microbatches, *rows.shape[2:])

    return jax.tree.map(gathered, per_row)


def _stacked(aux: Any, stage: jax.Array, schedule: Schedule) -> Any:
    """What blocks returned, of all layers for this device's rows, stacked by layers.

    aux: [ticks, layers of the stage, rows of a microbatch, ...] each.

    Raises:
      UserError: something that a block returned has no rows.
    """

    S, R = schedule.n_stages, schedule.n_rounds

    def of_own_rows(x):
        if x.ndim < 3:
            raise UserError(
                "With stage, what a block returns beside its activations, or notes, "
                f"has an axis for rows first; it has the shape {x.shape[2:]}."
            )
        x = jax.lax.dynamic_slice_in_dim(x, stage, schedule.n_turns)
        x = x.reshape(schedule.n_groups, R, S, *x.shape[1:])
        # [groups, rounds, homes, layers, rows, ...] ->
        # [stages, groups, rounds, layers, rows, ...]
        x = jax.lax.all_to_all(jnp.moveaxis(x, 2, 0), STAGE, 0, 0, tiled=True)
        x = jnp.moveaxis(x, (2, 0, 3), (0, 1, 2))
        return x.reshape(-1, x.shape[3] * x.shape[4], *x.shape[5:])

    return jax.tree.map(of_own_rows, aux)
