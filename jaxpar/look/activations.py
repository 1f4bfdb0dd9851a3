"""Estimates the activations that a step holds on each device, from its own trace.

The gradient is traced on the layout's abstract mesh, which allocates nothing: with its
microbatches, rematerialisation and chunks of logits. A value lives from the operation
that makes it to the last one that reads it. How it is split follows from the
constraints in the model's code, carried forward through the operations after them.
"""

import math
import sys
from collections.abc import Collection, Sequence, Set
from typing import Any

import jax
import numpy as np
from jax.dtypes import canonicalize_dtype
from jax.extend import core
from jax.sharding import PartitionSpec

from jaxpar.data.windows import Window
from jaxpar.experiment import Experiment
from jaxpar.metrics.flops import carry_of, inner_jaxprs
from jaxpar.partition.layout import Dims, Placed
from jaxpar.train.gradients import make_gradients

END = sys.maxsize
"""Where the results of a program are read."""
ANY = ("*",)
"""Dimension of a broadcast constant: takes whatever split its reader has."""


def activation_bytes(experiment: Experiment) -> int:
    """The most that live at a time on each device, while gradients are computed.

    Without the gradients themselves, and what only the compiler knows: what it fuses,
    reorders or buffers. Of a `cond` the first branch counts, of a `while` nothing
    inside. On a CPU it allocates 0.8 to 1.4 times as much, with gradients
    (tests/look/test_activations.py).
    """
    layout: Any = experiment.layout
    # A mesh without devices: nothing is compiled for it.
    placed = Placed(layout, layout.abstract())
    recipe, ones = experiment.recipe(), np.ones(experiment.data.seq_len + 1, np.int32)
    window = Window(ones, ones, np.cumsum(ones) - 1, ones.astype(np.float32))
    batch = {
        name: jax.ShapeDtypeStruct(
            (experiment.data.batch_size, *x.shape), canonicalize_dtype(x.dtype)
        )
        for name, x in experiment.objective.row(window).items()
    }
    args = recipe.anatomy.shapes, batch, jax.ShapeDtypeStruct((), np.int32)
    gradients = make_gradients(recipe, placed, **experiment.step_options)
    jaxpr = jax.make_jaxpr(gradients)(*args).jaxpr
    names: Any = recipe.anatomy.names
    names = jax.tree.leaves(names, is_leaf=lambda leaf: isinstance(leaf, tuple))
    splits = [layout.split(each, "stored") for each in names]
    splits += [_of(var, {}) for var in jaxpr.invars[len(splits) :]]
    return most_at_a_time(jaxpr, splits, layout.sizes, jaxpr.outvars)[1]


def most_at_a_time(
    jaxpr: core.Jaxpr,
    splits: Sequence[Dims],
    sizes: dict[str, int],
    elsewhere: Collection[Any],
) -> tuple[list[Dims], int]:
    """How its results are split, and the most bytes of its values that live at a time.

    Its arguments are counted where they live, outside it, and so are those of its
    results that are `elsewhere`; the others count from where they are made.
    """
    known = dict(zip(jaxpr.invars, splits, strict=True))
    last: dict[Any, int] = {}
    for i, eqn in enumerate(jaxpr.eqns):
        last |= {var: i for var in eqn.invars if isinstance(var, core.Var)}
    last |= dict.fromkeys((v for v in jaxpr.outvars if isinstance(v, core.Var)), END)
    elsewhere = {var for var in elsewhere if isinstance(var, core.Var)}
    held, most = dict[Any, int](), 0
    for i, eqn in enumerate(jaxpr.eqns):
        ins, before = [_of(var, known) for var in eqn.invars], sum(held.values())
        outs, inside = _equation(eqn, ins, sizes, elsewhere)
        for var, dims in zip(eqn.outvars, outs, strict=True):
            known[var] = _once(dims)
            # What is broadcast is fused into the operations that read it.
            counts = var not in elsewhere and eqn.primitive.name != "broadcast_in_dim"
            held[var] = _bytes(var, known[var], sizes) if counts else 0
        after = sum(held.values())
        # A loop's results live as long as it runs.
        in_loop = eqn.primitive.name == "scan"
        most = max(most, after, (after if in_loop else before) + inside)
        held = {var: n for var, n in held.items() if last.get(var, 0) > i}
    return [_of(var, known) for var in jaxpr.outvars], most


def _equation(
    eqn: core.JaxprEqn, ins: list[Dims], sizes: dict[str, int], elsewhere: Set[Any]
) -> tuple[Sequence[Dims], int]:
    """How its results are split, and the most bytes that live inside it at a time.

    Among these are its results as they are made, but for a loop's, which live all the
    time, and for those counted `elsewhere`.
    """
    name, inner = eqn.primitive.name, list(inner_jaxprs(eqn.params))
    if name == "shard_map":
        # Shapes inside are those of pieces, which the other axes may split further.
        left = {
            a: n for a, n in sizes.items() if a not in eqn.params["newly_manual_axes"]
        }
        pieces = [
            tuple(tuple(a for a in dim if a in left or dim == ANY) for dim in dims)
            for dims in ins
        ]
        found, most = most_at_a_time(
            inner[0], pieces, left, _inside(eqn, inner[0], elsewhere)
        )
        specs = zip(eqn.params["out_specs"], eqn.outvars, strict=True)
        whole = zip([_dims(*each) for each in specs], found, strict=True)
        return [
            tuple(a if b == ANY else (*a, *b) for a, b in zip(*dims, strict=True))
            for dims in whole
        ], most
    if name == "scan":
        carry = carry_of(eqn)
        n = carry.stop - carry.start
        inside = [*ins[: carry.stop], *(dims[1:] for dims in ins[carry.stop :])]
        results = inner[0].outvars
        outs, most = most_at_a_time(inner[0], inside, sizes, results)
        if outs[:n] != inside[carry]:  # Zeros, to which something split is added.
            inside[carry] = outs[:n]
            outs, most = most_at_a_time(inner[0], inside, sizes, results)
        return [*outs[:n], *(((), *dims) for dims in outs[n:])], most
    if name == "cond":
        ins, inner = ins[1:], inner[:1]
    if name == "while":
        return ins[len(ins) - len(eqn.outvars) :], 0
    if len(inner) == 1 and len(inner[0].invars) == len(ins):
        return most_at_a_time(inner[0], ins, sizes, _inside(eqn, inner[0], elsewhere))
    return [_result(eqn, ins, out) for out in eqn.outvars], 0


def _inside(eqn: core.JaxprEqn, inner: core.Jaxpr, elsewhere: Set[Any]) -> list[Any]:
    """The inner results of an operation that are counted elsewhere."""
    pairs = zip(inner.outvars, eqn.outvars, strict=True)
    return [result for result, out in pairs if out in elsewhere]


def _result(eqn: core.JaxprEqn, ins: list[Dims], out: Any) -> Dims:
    """How the result of a primitive operation is split."""
    name, params = eqn.primitive.name, eqn.params
    shapes = [getattr(var.aval, "shape", ()) for var in (*eqn.invars, out)]
    if name == "sharding_constraint":
        spec = params["sharding"].spec
        free = [i for i, dim in enumerate(spec) if dim is PartitionSpec.UNCONSTRAINED]
        asked = enumerate(_dims(spec, out))
        return tuple(ins[0][i] if i in free else dim for i, dim in asked)
    if name == "dot_general":
        (left, right), batch = params["dimension_numbers"]
        gone = {*left, *batch[0]}, {*right, *batch[1]}
        kept = [
            dim
            for dims, without in zip(ins, gone, strict=True)
            for i, dim in enumerate(dims)
            if i not in without
        ]
        return (*(ins[0][i] for i in batch[0]), *kept)
    if name == "transpose":
        return tuple(ins[0][i] for i in params["permutation"])
    if name == "broadcast_in_dim":
        at = {to: i for i, to in enumerate(params["broadcast_dimensions"])}
        same = {to for to, i in at.items() if shapes[0][i] == shapes[-1][to]}
        return tuple(ins[0][at[i]] if i in same else ANY for i in range(out.aval.ndim))
    if name == "reshape":
        # What splits a dimension goes on to the one that its outermost part becomes.
        starts, ends = ([math.prod(s[:i]) for i in range(len(s) + 1)] for s in shapes)
        return tuple(
            sum((d for d, s in zip(ins[0], starts) if a <= s < b), ())  # noqa: B905
            for a, b in zip(ends, ends[1:], strict=False)
        )
    if len(ins[0] if ins else ()) > out.aval.ndim:
        gone = params.get("axes", params.get("dimensions", ()))
        left = tuple(dim for i, dim in enumerate(ins[0]) if i not in gone)
        return left[: out.aval.ndim]  # The numbers of a random key become one.
    # As the operands of the same rank are, where sizes agree.
    dims: list[tuple[str, ...]] = [ANY] * getattr(out.aval, "ndim", 0)
    for shape, split in zip(shapes, ins, strict=False):
        for i, dim in enumerate(split if len(split) == len(dims) else ()):
            if dim != ANY and dims[i] in (ANY, ()) and shape[i] == shapes[-1][i]:
                dims[i] = dim
    return tuple(dims)


def _of(var: Any, known: dict[Any, Dims]) -> Dims:
    """How a variable is split; not at all where that is not known."""
    whole = ((),) * getattr(var.aval, "ndim", 0)
    return known.get(var, whole) if isinstance(var, core.Var) else whole


def _dims(spec: PartitionSpec, var: Any) -> Dims:
    """The mesh axes of each of a variable's dimensions."""
    dims = (*spec, *(None,) * (var.aval.ndim - len(spec)))
    as_tuples = (dim if isinstance(dim, tuple) else (dim,) for dim in dims)
    return tuple(tuple(a for a in dim if isinstance(a, str)) for dim in as_tuples)


def _once(dims: Dims) -> Dims:
    """Each mesh axis where it stands first: it can split an array only once."""
    first = {axis: i for i, dim in reversed([*enumerate(dims)]) for axis in dim}
    return tuple(
        dim if dim == ANY else tuple(axis for axis in dim if first[axis] == i)
        for i, dim in enumerate(dims)
    )


def _bytes(var: Any, dims: Dims, sizes: dict[str, int]) -> int:
    """Of a piece, rounded up; nothing of equal numbers, which their readers make."""
    shape, dtype = getattr(var.aval, "shape", ()), getattr(var.aval, "dtype", None)
    if dtype is None or (shape and all(dim == ANY for dim in dims)):
        return 0
    used = {axis for dim in dims for axis in dim}
    free = [axis for axis in sizes if axis not in used]
    ways = (free if dim == ANY else dim for dim in dims)
    pieces = [math.prod(sizes.get(axis, 1) for axis in dim) for dim in ways]
    piece = (-(-n // ways) for n, ways in zip(shape, pieces, strict=True))
    return math.prod(piece) * dtype.itemsize
