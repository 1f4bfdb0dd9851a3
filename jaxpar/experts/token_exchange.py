"""Tokens to the devices of their experts, and back: in slots, or without a limit.

Both run in `local`: a device has the rows of its own tokens, and its own experts.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxpar.partition.collectives import Collectives

RunExperts = Callable[[jax.Array, jax.Array], jax.Array]
"""(rows in the order of this device's experts, rows of each) -> what they make of
them; rows after the last expert's give 0."""
NOWHERE = -1


class Arrived(NamedTuple):
    """What came back for each choice, and which choices found no room on the way."""

    y: Float[Array, "N k D"]
    """0 for choices that are not computed."""
    overflowed: Bool[Array, "N k"]


def moved(
    x: Float[Array, "M D"], source: Int[Array, " S"], target: Int[Array, " M"]
) -> Float[Array, "S D"]:
    """Rows of x in other places: place s has row source[s], or 0 where it is NOWHERE.

    target: the inverse, the place of each row, or NOWHERE. So the gradient is read from
    the places, too, not added up into rows in an order that may differ.
    """

    def read(x, places):
        found = jnp.take(x, jnp.maximum(places, 0), axis=0)
        return jnp.where((places == NOWHERE)[:, None], jnp.zeros((), x.dtype), found)

    @jax.custom_vjp
    def run(x, source, target):
        return read(x, source)

    run.defvjp(
        lambda x, source, target: (read(x, source), target),
        lambda target, grad: (read(grad, target), None, None),
    )
    return run(x, source, target)


def inverse(source: Int[Array, " S"], n: int) -> Int[Array, " n"]:
    """The place that each of n rows has in `source`, or NOWHERE."""
    places = jnp.full(n + 1, NOWHERE, jnp.int32)
    rows = jnp.where(source == NOWHERE, n, source)
    return places.at[rows].set(jnp.arange(len(source), dtype=jnp.int32))[:n]


def in_slots(
    together: Collectives,
    x: Float[Array, "b t D"],
    experts: Int[Array, "b t k"],
    slots: Int[Array, "b t k"],
    run: RunExperts,
    *,
    n_experts: int,
    n_slots: int,
) -> Float[Array, "b t k D"]:
    """What experts make of the tokens in their slots; each has n_slots for each row.

    together: the devices that have the experts. slots: of each choice among those of
    its row and expert, or NOWHERE: such choices are dropped, and give 0. Devices
    exchange all slots, filled or not.
    """
    b, t, k = experts.shape
    row = jnp.arange(b)[:, None, None]
    place = (experts * b + row) * n_slots + slots
    place = jnp.where(slots == NOWHERE, NOWHERE, place).reshape(-1)
    source = inverse(place, n_experts * b * n_slots)
    sent = moved(_repeated(x.reshape(b * t, -1), k), source, place)
    devices = together.size
    own = n_experts // devices
    # [experts of all devices, rows, D] -> [own experts, slots of all devices, D]
    came = together.all_to_all(sent.reshape(devices, own, b * n_slots, -1), 0, 0)
    came = came.swapaxes(0, 1).reshape(own * devices * b * n_slots, -1)
    y = run(came, jnp.full(own, devices * b * n_slots))
    y = y.reshape(own, devices, b * n_slots, -1).swapaxes(0, 1)
    y = together.all_to_all(y, 0, 0).reshape(n_experts * b * n_slots, -1)
    return moved(y, place, source).reshape(b, t, k, -1)


def dropless(
    together: Collectives,
    x: Float[Array, "N D"],
    experts: Int[Array, "N k"],
    run: RunExperts,
    *,
    n_experts: int,
    buffer_factor: float,
) -> Arrived:
    """What experts make of the tokens that chose them, however many these are.

    experts: NOWHERE for a choice that is not to be computed. Choices are sorted by
    expert and exchanged with their numbers. XLA needs the size of what is sent before
    it runs: the most that can happen, where all tokens choose experts of one device; or
    so large a part of it as `buffer_factor` says (of 1), with room for fewer; what
    overflows is not computed.
    """
    (n, k), devices = experts.shape, together.size
    own = n_experts // devices
    flat = jnp.where(experts == NOWHERE, n_experts, experts).reshape(-1)
    order = jnp.argsort(flat, stable=True).astype(jnp.int32)
    sizes = jnp.bincount(flat, length=n_experts)
    rows = _repeated(x, k)
    if devices == 1:
        place = inverse(order, n * k)
        y = moved(run(moved(rows, order, place), sizes), place, order)
        return Arrived(y.reshape(n, k, -1), jnp.zeros((n, k), bool))

    room = max(1, math.ceil(n * min(k, own) * (buffer_factor or 1.0)))
    by_device = sizes.reshape(devices, own)
    to_device = jnp.sum(by_device, axis=1)
    begins = jnp.cumsum(to_device) - to_device
    i = jnp.arange(room)[None]
    sorted_row = begins[:, None] + i
    taken = jnp.take(order, jnp.minimum(sorted_row, n * k - 1))
    source = jnp.where(i < to_device[:, None], taken, NOWHERE).reshape(-1)
    target = inverse(source, n * k)
    overflowed = (target == NOWHERE) & (flat < n_experts)

    # Of each device's experts those first in order, as many as there is room for.
    ends = jnp.minimum(jnp.cumsum(by_device, axis=1), room)
    fitting = jnp.diff(ends, axis=1, prepend=0)
    came_from = together.all_to_all(fitting, 0, 0)
    came = together.all_to_all(
        moved(rows, source, target).reshape(devices, room, -1), 0, 0
    )
    came = came.reshape(devices * room, -1)
    # Of what came from a device, its i-th row is of the expert whose rows end after i.
    of_expert = jnp.sum(jnp.cumsum(came_from, axis=1)[:, None] <= i[..., None], axis=-1)
    by_expert = jnp.argsort(of_expert.reshape(-1), stable=True).astype(jnp.int32)
    back = inverse(by_expert, devices * room)
    y = run(moved(came, by_expert, back), jnp.sum(came_from, axis=0))
    y = moved(y, back, by_expert).reshape(devices, room, -1)
    y = together.all_to_all(y, 0, 0).reshape(devices * room, -1)
    y = moved(y, target, source)
    return Arrived(y.reshape(n, k, -1), overflowed.reshape(n, k))


def _repeated(x: Float[Array, "N D"], k: int) -> Float[Array, "N*k D"]:
    """Each token's row once for each of its choices."""
    return jnp.broadcast_to(x[:, None], (len(x), k, x.shape[1])).reshape(len(x) * k, -1)
