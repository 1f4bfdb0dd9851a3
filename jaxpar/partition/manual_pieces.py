"""Collectives over manual mesh axes, on arrays that other axes split, too.

Called plainly, they make the compiler first bring together what the axes that are left
to it split, such as `tensor`. So those are made manual for the collective.
"""

from collections.abc import Callable, Sequence

import jax

from jaxpar.partition.layout import Layout

Names = Sequence[str | None]


def gather_pieces(
    w: jax.Array, names: Names, dim: int, axes: Sequence[str], rest: Layout | None
) -> jax.Array:
    """A parameter, whole along a dimension that manual axes split.

    rest: the layout over the axes that are left to the compiler.
    """
    if not _splits(rest, names, dim):
        return _by_hand(
            lambda w: jax.lax.all_gather(w, axes, axis=dim, tiled=True), w, names, rest
        )
    # Each piece is split once more: only whole pieces stand one after another.
    pieces = (*names[:dim], None, *names[dim:])
    w = _by_hand(
        lambda w: jax.lax.all_gather(w, axes, axis=dim), w, names, rest, becomes=pieces
    )
    return w.reshape(*w.shape[:dim], -1, *w.shape[dim + 2 :])


def scatter_sum(
    grad: jax.Array, names: Names, dim: int, axes: Sequence[str], rest: Layout | None
) -> jax.Array:
    """The sum of a gradient over manual axes, which split a dimension of it then."""
    if not _splits(rest, names, dim):
        return _by_hand(
            lambda g: jax.lax.psum_scatter(g, axes, scatter_dimension=dim, tiled=True),
            grad,
            names,
            rest,
        )
    pieces = (*names[:dim], None, *names[dim:])
    n = jax.lax.axis_size(tuple(axes))
    grad = grad.reshape(*grad.shape[:dim], n, -1, *grad.shape[dim + 1 :])
    return _by_hand(
        lambda g: jax.lax.psum_scatter(g, axes, scatter_dimension=dim),
        grad,
        pieces,
        rest,
        becomes=names,
    )


def permute(
    x: jax.Array, names: Names, axis: str, by: int, rest: Layout | None
) -> jax.Array:
    """An activation of the device `by` places before this one along a manual axis."""

    def collective(x):
        n = jax.lax.axis_size(axis)
        return jax.lax.ppermute(x, axis, [(i, (i + by) % n) for i in range(n)])

    # Where no other axis splits it, the gradient would be added up over them all.
    is_split = rest is not None and any(rest.split(names, "computed"))
    return _by_hand(collective, x, names, rest if is_split else None, "computed")


def _splits(rest: Layout | None, names: Names, dim: int) -> bool:
    """Whether the compiler's axes split this dimension of a parameter, too."""
    return rest is not None and bool(rest.split(names, "stored")[dim])


def _by_hand(
    collective: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    names: Names,
    rest: Layout | None,
    which: str = "stored",
    becomes: Names | None = None,
) -> jax.Array:
    """The collective, with all axes manual; becomes: the result's names, if others."""
    if rest is None:
        return collective(x)
    run = jax.shard_map(
        collective,
        in_specs=rest.spec(names, which),
        out_specs=rest.spec(names if becomes is None else becomes, which),
        axis_names=set(rest.sizes),
        check_vma=False,
    )
    return run(x)
