"""Work of each device on its own rows, whose gradients are reduced once a step.

It runs in a `jax.shard_map` that is manual over the mesh axes that split rows: there
the compiler sees one device's rows, so it does not reduce a gradient for each
microbatch or each chunk of the loss. `tensor` stays with the compiler.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxpar.partition.layout import Layout
from jaxpar.partition.manual_pieces import gather_pieces, scatter_sum
from jaxpar.partition.sharding import (
    AxisNames,
    WholeRowsNeeded,
    axis_names,
    constrain,
    current_context,
    enter,
    gather,
)

Gathers = Literal["microbatch", "round", "step"]
"""How often fsdp brings parameters together: for each microbatch, layer by layer in
both passes; for each round of a circular pipeline, the layers that a stage computes in
it, in both passes; or all of them once a step."""
ROWS = ("batch", "seq")
T = TypeVar("T")


def over_row_axes(
    run: Callable[[tuple[str, ...]], T], layout: Layout, *, per_token: bool
) -> T:
    """run(axes) with the mesh axes that split rows, which are to be manual.

    run traces a step. If what it traces raises WholeRowsNeeded, it is traced again with
    the axes that split the batch alone.

    per_token: whether a device may be given a piece of each row. Even then it is not if
    the model needs whole rows: what splits the sequence stays with the compiler.
    """

    def axes(*names: str) -> tuple[str, ...]:
        rules = [getattr(layout.computed, name) for name in names]
        split_rows = {axis for rule in rules for axis in rule if isinstance(axis, str)}
        return tuple(a for a, n in layout.mesh_shape if a in split_rows and n > 1)

    if per_token:
        with contextlib.suppress(WholeRowsNeeded):
            return run(axes(*ROWS))
    return run(axes(*ROWS[:1]))


def on_own_rows(
    f: Callable[..., Any],
    axes: Sequence[str],
    *,
    names: Any,
    batch: dict[str, jax.Array],
    out_specs: Any,
    gathers: Gathers = "microbatch",
    microbatches: int = 1,
) -> Callable[..., Any]:
    """f(params, batch, keys) on every device, which sees its own rows as the batch.

    axes: the mesh axes that are manual. names: axis names of all parameters. out_specs:
    as jax.shard_map takes them. microbatches: of a pipeline, if there is one.
    """

    def inside(*args):
        context = dataclasses.replace(
            current_context(),
            manual=tuple(axes),
            gathered=gathers == "step",
            by_round=gathers == "round",
            microbatches=microbatches,
        )
        with enter(context):
            return f(*args)

    rows = {name: ROWS[:1] + ROWS[1:] * (x.ndim - 1) for name, x in batch.items()}
    return jax.shard_map(
        inside,
        in_specs=(
            specs(names, "stored", axes),
            specs(rows, "computed", axes),
            specs(ROWS[:1], "computed", axes),
        ),
        out_specs=out_specs,
        axis_names=set(axes),
        check_vma=False,
    )


def on_every_device(f: Callable[..., Any]) -> Callable[..., Any]:
    """f on every device, which each have all that it takes: one program for all."""
    layout = current_context().layout
    axes = tuple(layout.sizes) if layout else ()

    def inside(*args):
        context = current_context()
        with enter(dataclasses.replace(context, manual=axes)):
            return f(*args)

    whole = PartitionSpec()
    return jax.shard_map(
        inside, in_specs=whole, out_specs=whole, axis_names=set(axes), check_vma=False
    )


def specs(names: Any, which: str, axes: Sequence[str]) -> Any:
    """How these mesh axes alone split arrays, of a tree of their axis names."""
    layout = current_context().layout

    def spec(names: AxisNames) -> PartitionSpec:
        dims = layout.split(names, which) if layout else ()
        own = [tuple(axis for axis in dim if axis in axes) for dim in dims]
        return PartitionSpec(*(dim or None for dim in own))

    return jax.tree.map(spec, names, is_leaf=lambda leaf: isinstance(leaf, tuple))


def widened(params: Any) -> Any:
    """Parameters in no less than the type in which their gradients are added up.

    A gradient has its parameter's type, so only thus are sums over uses of a parameter,
    chunks and microbatches as precise as `precision.reduce` says.
    """
    reduce = current_context().precision.reduce
    return jax.tree.map(lambda w: w.astype(jnp.promote_types(w.dtype, reduce)), params)


def gather_once(w: jax.Array, names: AxisNames) -> jax.Array:
    """A parameter, whole over the manual axes, for the whole step."""
    context = current_context()
    for i, axes in enumerate(context.gathered_dims(names)):
        if axes:
            w = gather_pieces(w, names, i, axes, context.automatic)
    return w


def gathered_for_loop(model: Any, call: Callable[..., Any]) -> Callable[..., Any]:
    """call(model, ...) for the body of a loop, with the parameters gathered before it.

    So fsdp gathers what the call uses once, not at every turn, and reduces its
    gradients once. Where no device has slices of parameters this changes nothing.
    """
    context = current_context()
    if not context.manual or context.gathered:
        return functools.partial(call, model)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    whole = nnx.merge(graph, gathered(params), rest)

    def run(*args):
        with enter(dataclasses.replace(context, gathered=True)):
            return call(whole, *args)

    return run


def has_slices(params: Any) -> bool:
    """Whether some parameters are in slices that have yet to be brought together."""
    context = current_context()
    return not context.gathered and any(
        any(context.gathered_dims(axis_names(w)))
        for w in jax.tree.leaves(params, is_leaf=_is_param)
        if _is_param(w)
    )


def gathered(params: Any) -> Any:
    """A tree with parameters, each brought together over the manual axes."""
    return jax.tree.map(
        lambda w: w.replace(gather(w)) if _is_param(w) else w, params, is_leaf=_is_param
    )


def _is_param(x: Any) -> bool:
    return isinstance(x, nnx.Param)


def reduce_once(grad: jax.Array, names: AxisNames) -> jax.Array:
    """The sum of what all devices have added up, in the slices of the optimizer.

    Dimensions that are in slices already, since `fsdp` stores the parameter so, have
    been reduced over those axes as they came.
    """
    context = current_context()
    have = context.manual_dims(names, "stored")
    if context.gathered:
        brought = context.gathered_dims(names)
        have = [() if found else dim for dim, found in zip(have, brought, strict=True)]
    done: set[str] = set()
    for i, want in enumerate(context.manual_dims(names, "optimizer")):
        if want and not have[i]:
            grad = scatter_sum(grad, names, i, want, context.automatic)
        done |= {*have[i], *want}
    rest = tuple(axis for axis in context.manual if axis not in done)
    grad = jax.lax.psum(grad, rest) if rest else grad
    return constrain(grad, *names, which="optimizer")


def sum_over_rows(tree: Any, *, only_scalars: bool = True) -> Any:
    """The sums over all devices' rows: of the scalars of a tree, or of all of it."""
    axes = current_context().manual

    def added(x: jax.Array) -> jax.Array:
        return x if only_scalars and x.ndim else jax.lax.psum(x, axes)

    return jax.tree.map(added, tree)
