"""Stacks of equal blocks: built at once, run one after another."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar.errors import UserError
from jaxpar.partition.notes import recorded, recording
from jaxpar.partition.stages import stages

REMAT = {
    "none": jax.checkpoint_policies.everything_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("attn/found"),
    ),
}


def policy(name: str):
    """A rematerialisation policy by its name.

    none keeps everything, full nothing, dots the products with parameters and what
    attention found, save:NOTE+NOTE what model code notes under these names.
    """
    if name.startswith("save:"):
        return jax.checkpoint_policies.save_only_these_names(*name[5:].split("+"))
    if name not in REMAT:
        raise UserError(
            f"remat={name!r}; there are {', '.join(REMAT)} and save:NAME+NAME."
        )
    return REMAT[name]


def stacked(make_block: Callable[[nnx.Rngs], nnx.Module], n: int, rngs: nnx.Rngs):
    """n blocks as one module, each parameter with a leading axis `layers`."""
    make = nnx.vmap(
        make_block,
        in_axes=0,
        out_axes=0,
        transform_metadata={nnx.PARTITION_NAME: "layers"},
    )
    return make(rngs.split(n))


def scan(run: Callable, blocks: nnx.Module, x, *per_row, carried=None, remat="none"):
    """Runs run(block, x, layer, carried, *per_row) -> (x, aux) over a stack.

    `carried` is a pytree stacked by layers, of which each block gets its own piece
    (a cache). Returns x and the aux of all layers, stacked.
    """
    graph, weights = nnx.split(blocks)
    n = jax.tree.leaves(weights)[0].shape[0]

    def block(piece, x, *per_row):
        layer, weights, carried = piece
        return run(nnx.merge(graph, weights), x, layer, carried, *per_row)

    notes = recorded()
    names: list[str] = []
    if notes is not None:
        block = _telling(block, names)
    if remat != "none":
        block = jax.checkpoint(block, policy=policy(remat), prevent_cse=False)
    x, aux = stages(block, (jnp.arange(n), weights, carried), x, *per_row)
    if notes is not None:
        aux, told = aux
        for name, value in zip(names, told, strict=True):
            notes.take(f"layers/{name}", value)
    return x, aux


def _telling(block: Callable, names: list[str]) -> Callable:
    """The block with what it notes beside its aux; `names` gets their names."""

    def told(piece, x, *per_row):
        with recording() as notes:
            x, aux = block(piece, x, *per_row)
        names[:] = notes.found
        return x, (aux, tuple(notes.found.values()))

    return told
