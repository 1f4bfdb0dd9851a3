"""Device meshes that put the axes that communicate most on the fastest links."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from jaxpar.errors import UserError


def mesh(sizes: dict[str, int], devices: Sequence[Any]) -> Mesh:
    """A mesh of these devices.

    sizes: mesh axis to size, in order from the least to the most communication.

    Within a slice (of a TPU pod, or the GPUs that NVLink connects) JAX orders the
    devices by how they are connected. Several slices lie along the outermost axes, so
    that only these communicate over the network between slices.

    Raises:
      UserError: the sizes of the axes cannot be divided among the slices.
    """
    axis_types = (AxisType.Auto,) * len(sizes)
    slices = {getattr(device, "slice_index", 0) for device in devices}
    shape, names = tuple(sizes.values()), tuple(sizes)
    if len(slices) == 1:
        return jax.make_mesh(
            shape, names, axis_types=axis_types, devices=tuple(devices)
        )
    across = _slices_across(sizes, len(slices))
    within = [size // n for size, n in zip(shape, across, strict=True)]
    ordered = mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )
    return Mesh(ordered, names, axis_types=axis_types)


def _slices_across(sizes: dict[str, int], n_slices: int) -> list[int]:
    """How many slices each axis spans; outer axes span as many as they can."""
    remaining, across = n_slices, []
    for size in sizes.values():
        across.append(math.gcd(size, remaining))
        remaining //= across[-1]
    if remaining > 1:
        spelled = ", ".join(f"{axis} {n}" for axis, n in sizes.items())
        raise UserError(
            f"A mesh of {spelled} cannot be divided among {n_slices} slices; "
            f"replica={n_slices} puts one copy of the model on each."
        )
    return across
