"""Scan over identical layers (blocks), with rematerialisation by policy."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxpar.errors import UserError
from jaxpar.partition.notes import recorded, recording
from jaxpar.partition.sharding import current_context, recomputed
from jaxpar.pipeline.stages import stages

LAYERS = "layers/"
"""What the names of notes begin with whose values are stacked by layers."""
_ran: contextvars.ContextVar[list[int] | None] = contextvars.ContextVar(
    "ran", default=None
)
REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attn/found"),
    ),
}


def policy(name: str) -> Callable[..., Any]:
    """A rematerialisation policy by its name: what the forward pass saves.

    none saves everything, full nothing, dots the products with parameters and the
    residuals of attention, save:NOTE+NOTE what model code notes under these names.

    Raises:
      UserError: there is no such policy.
    """
    if name.startswith("save:"):
        return jax.checkpoint_policies.save_only_these_names(*name[5:].split("+"))
    if name not in REMAT:
        raise UserError(
            f"remat={name!r}; there are {', '.join(REMAT)} and save:NAME+NAME."
        )
    return REMAT[name]


def stacked(
    make_block: Callable[[nnx.Rngs], nnx.Module], n: int, rngs: nnx.Rngs
) -> nnx.Module:
    """n blocks as one module, each parameter with a leading axis `layers`."""
    make = nnx.vmap(
        make_block,
        in_axes=0,
        out_axes=0,
        transform_metadata={nnx.PARTITION_NAME: "layers"},
    )
    return make(rngs.split(n))


@contextlib.contextmanager
def all_stacks_run(names: Any) -> Iterator[None]:
    """A block that traces a model, all of whose stacked parameters `scan` must run.

    A device sees the layers of its own stage alone: code that walks along them itself
    would leave out the others. names: axis names of all parameters, as a tree.

    Raises:
      UserError: it does.
    """
    context = current_context()
    token = _ran.set(ran := [])
    try:
        yield
    finally:
        _ran.reset(token)
    each = jax.tree.leaves(names, is_leaf=lambda leaf: isinstance(leaf, tuple))
    n = sum("layers" in axes for axes in each)
    if context.layout and context.layout.n_stages > 1 and sum(ran) < n:
        raise UserError(
            f"Layout {context.layout.spelling}: of {n} parameters with an axis "
            f"`layers`, jaxpar.nn.stack.scan has run {sum(ran)}; with stage it has to "
            "run all of them, since a device has the layers of its own stage alone."
        )


def scan(
    run: Callable[..., tuple[jax.Array, Any]],
    blocks: nnx.Module,
    x: Float[Array, "B T D"],
    *per_row: Any,
    carried: Any = None,
    remat: str = "none",
) -> tuple[Float[Array, "B T D"], Any]:
    """Runs run(block, x, layer, carried, *per_row) -> (x, aux) over a stack.

    per_row: arrays that blocks read which have a row of the batch each, such as
    positions. Handed over here, not closed over, they go with x through a pipeline.
    `carried` is a pytree stacked by layers (a cache), of which each block gets its own
    layer's piece. Returns x and the aux of all layers, stacked.
    """
    graph, weights = nnx.split(blocks)
    if (ran := _ran.get()) is not None:
        ran.append(len(jax.tree.leaves(weights)))

    def block(layer, piece, x, *per_row):
        weights, carried = piece
        return run(nnx.merge(graph, weights), x, layer, carried, *per_row)

    notes = recorded()
    names: list[str] = []
    if notes is not None:
        block = _with_notes(block, names)
    keeps_all = remat == "none"
    with contextlib.nullcontext() if keeps_all else recomputed():
        x, aux = stages(
            block,
            (weights, carried),
            x,
            *per_row,
            remat=None if keeps_all else policy(remat),
        )
    if notes is not None:
        aux, values = aux
        for name, value in zip(names, values, strict=True):
            notes.take(f"{LAYERS}{name}", value)
    return x, aux


def _with_notes(block: Callable, names: list[str]) -> Callable:
    """The block, which also returns the values of its notes; `names` gets their names.

    They have to leave a scan as outputs.
    """

    def run(layer, piece, x, *per_row):
        with recording() as notes:
            x, aux = block(layer, piece, x, *per_row)
        names[:] = notes.found
        return x, (aux, tuple(notes.found.values()))

    return run
