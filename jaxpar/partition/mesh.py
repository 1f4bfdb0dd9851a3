"""Which device stands where in a mesh: near ones along the axes that talk most."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxpar.errors import UserError


def mesh(sizes: dict[str, int], devices: Sequence[Any]) -> Mesh:
    """A mesh of these devices; sizes are of its axes, the slowest network's first.

    Within a slice (a TPU pod's, or the GPUs that NVLink joins) JAX orders them by the
    wires. Several slices are spread along the outermost axes alone, so that only these
    send over the network between slices.

    Raises:
      ValueError: the sizes of the axes cannot be divided among the slices.
    """
    auto = (AxisType.Auto,) * len(sizes)
    slices = {getattr(device, "slice_index", 0) for device in devices}
    shape, names = tuple(sizes.values()), tuple(sizes)
    if len(slices) == 1:
        return jax.make_mesh(shape, names, axis_types=auto, devices=tuple(devices))
    between = _between(sizes, len(slices))
    within = [n // outer for n, outer in zip(shape, between, strict=True)]
    ordered = mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )
    return Mesh(ordered, names, axis_types=auto)


def _between(sizes: dict[str, int], slices: int) -> list[int]:
    """How many slices each axis spans."""
    left, found = slices, []
    for size in sizes.values():
        found.append(math.gcd(size, left))
        left //= found[-1]
    if left > 1:
        spelled = ", ".join(f"{axis} {n}" for axis, n in sizes.items())
        raise UserError(
            f"A mesh of {spelled} cannot be divided among {slices} slices; "
            f"replica={slices} puts one copy of the model on each."
        )
    return found
