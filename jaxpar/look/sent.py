"""Who sends what to whom in a training step, as the words of a layout say.

Left out: what is small (positions, sums of the loss, gradients of norms over devices
that share products), and what a model of one's own exchanges between `in_order` and
`as_stored`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpar.look.held import places
from jaxpar.partition.layout import EXPERT, STAGE, Layout
from jaxpar.pipeline.layer_order import LAYERS

REDUCED, GATHERED, PASSED, EXCHANGED = KINDS = (
    "reduced", "gathered", "passed on", "exchanged",
)  # fmt: skip
Pairs = frozenset[tuple[int, int]]
"""(sender, receiver) by the devices' numbers in the mesh."""
TOKENS = ("batch", "seq", "embed")
OF_ATTENTION = {
    "context": ("keys and values, gathered", GATHERED),
    "ring": ("keys and values, passed on", PASSED),
    "ulysses": ("heads for tokens, exchanged", EXCHANGED),
}


class Sent(NamedTuple):
    """What some devices send to others in a step."""

    what: str
    """In words."""
    how: str
    """Over which words of the layout, and when."""
    kind: str
    """The kind of collective, one of KINDS."""
    pairs: Pairs


def words(layout: Layout) -> dict[str, str]:
    """The layout's word for each axis of the mesh."""
    said = [part.partition("=")[0] for part in layout.spelling.split(",")]
    return dict(zip(layout.sizes, said, strict=True))


def together(layout: Layout, axes: Sequence[str], most: int | None = None) -> Pairs:
    """Devices that differ along these axes of the mesh alone."""
    at = np.array(places(layout, most))
    fixed = [i for i, axis in enumerate(layout.sizes) if axis not in axes]
    same = (at[:, None, fixed] == at[None, :, fixed]).all(axis=-1)
    np.fill_diagonal(same, False)
    return frozenset((int(i), int(j)) for i, j in zip(*np.nonzero(same), strict=True))


def onwards(layout: Layout, axis: str, by: int, most: int | None = None) -> Pairs:
    """Each device and the next one along an axis (by=1), or the one before it."""
    all_places = places(layout, most)
    number = {place: i for i, place in enumerate(all_places)}
    k = [*layout.sizes].index(axis)
    pairs = set()
    for i, place in enumerate(all_places):
        to = (*place[:k], (place[k] + by) % layout.sizes[axis], *place[k + 1 :])
        if number.get(to, i) != i:
            pairs.add((i, number[to]))
    return frozenset(pairs)


def sent(
    layout: Layout, parameters: Sequence[Any], most: int | None = None
) -> list[Sent]:
    """All that is sent between the devices, or the first `most` of them.

    parameters: rows of a `show` table.
    """
    found = [
        *_of_weights(layout, _families(parameters), most),
        *_of_activations(layout, parameters, most),
    ]
    return [each for each in found if each.pairs]


def _families(parameters: Sequence[Any]) -> dict[str, tuple[str, ...]]:
    """The axes of the largest parameter of each kind whose gradients go other ways."""
    found: dict[str, tuple[str, ...]] = {}
    for row in sorted(parameters, key=lambda row: -math.prod(row.shape)):
        kind = row.path.rpartition("/")[-1]
        if LAYERS in row.axes:
            kind = "experts" if "experts" in row.axes else "dense layers"
        elif any(LAYERS not in axes for axes in found.values()):
            continue  # Of those outside the stack, the largest.
        if len(row.axes) > 1:
            found.setdefault(kind, row.axes)
    return found


def _axes(layout: Layout, names: Sequence[str], which: str) -> set[str]:
    return {axis for dim in layout.split(names, which) for axis in dim}


def _of_weights(
    layout: Layout, families: dict[str, tuple[str, ...]], most
) -> Iterator[Sent]:
    """Gradients, and what is stored or updated in slices."""
    rows = _axes(layout, TOKENS, "computed")
    gradients, slices, updates = {}, {}, {}
    for family, names in families.items():
        used = _axes(layout, names, "computed")
        if LAYERS in names:
            used |= _axes(layout, [LAYERS], "stored")
        gradients[family] = rows - used
        slices[family] = _axes(layout, names, "stored") - used
        updates[family] = _axes(layout, names, "optimizer") - used - slices[family]
    sliced = any(slices.values()) or any(updates.values())
    share = "each device its slices\n" if sliced else ""
    for by_family, what, when, kind in (
        (gradients, "gradients{}, reduced", share, REDUCED),
        (slices, "parameters{}, gathered", "in each pass\n", GATHERED),
        (updates, "updates{}, gathered", "once a step\n", GATHERED),
    ):
        yield _merged(layout, by_family, what, when, kind, most)


def _merged(
    layout: Layout, by_family: dict[str, set[str]], what, when, kind, most
) -> Sent:
    """One entry for all kinds of parameters, between all that one of them concerns."""
    those = {family: axes for family, axes in by_family.items() if axes}
    of = f" of {' and '.join(those)}" if len(those) < len(by_family) else ""
    alike: dict[str, list[str]] = {}
    for family, axes in those.items():
        alike.setdefault(_over(layout, axes), []).append(family)
    lines = [f"{', '.join(found)}:\n{over}" for over, found in alike.items()]
    how = "\n".join(lines if len(alike) > 1 else alike)
    pairs = (together(layout, [*axes], most) for axes in those.values())
    return Sent(what.format(of), when + how, kind, frozenset().union(*pairs))


def _over(layout: Layout, axes: set[str]) -> str:
    named = (word for axis, word in words(layout).items() if axis in axes)
    return "over " + " × ".join(named)


def _of_activations(layout: Layout, parameters: Sequence[Any], most) -> Iterator[Sent]:
    """What is sent between layers, and inside of them."""
    logical = {name for row in parameters for name in row.axes}
    split = (_axes(layout, row.axes, "computed") for row in parameters)
    products = set().union(*split) - {EXPERT}
    if products:
        split_seq = products & _axes(layout, TOKENS, "computed")
        what = "gathered and scattered" if split_seq else "reduced"
        yield Sent(
            f"activations, {what}",
            f"twice a layer in each pass\n{_over(layout, products)}",
            GATHERED if split_seq else REDUCED,
            together(layout, [*products], most),
        )
    if layout.attention and logical & {"heads", "kv_heads"}:
        what, kind = OF_ATTENTION[layout.attention]
        (axis,) = (
            a for a in layout.computed.seq if isinstance(a, str) and a in layout.sizes
        )
        every = together(layout, [axis], most)
        pairs = onwards(layout, axis, 1, most) if kind == PASSED else every
        yield Sent(
            what, f"in each layer and pass\n{_over(layout, {axis})}", kind, pairs
        )
    if layout.n_stages > 1:
        over = _over(layout, {STAGE})
        n = layout.n_rounds
        forth = f"{n} times a microbatch" if n > 1 else "once a microbatch"
        yield Sent(
            "activations, to the next stage",
            f"{forth}\nin each pass, {over}",
            PASSED,
            onwards(layout, STAGE, 1, most),
        )
        yield Sent(
            "inputs in, outputs home",
            f"the other way round\n{over}",
            PASSED,
            onwards(layout, STAGE, -1, most),
        )
    if EXPERT in layout.sizes and "experts" in logical:
        yield Sent(
            "tokens to experts, and back",
            f"in each layer and pass\n{_over(layout, {EXPERT})}",
            EXCHANGED,
            together(layout, [EXPERT], most),
        )
