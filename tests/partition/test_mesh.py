"""Only the outermost axes of a mesh span several slices."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxpar.partition.layout import Layout
from jaxpar.partition.mesh import mesh


@dataclasses.dataclass(frozen=True)
class Device:
    """The attributes of a device that JAX reads when it makes a mesh."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "test device"


def devices_of(n_slices: int, per_slice: int) -> list[Device]:
    # Interleaved: in this order, neighbours would belong to different slices.
    n = n_slices * per_slice
    return [Device(id=i, slice_index=i % n_slices) for i in range(n)]


@pytest.mark.parametrize(
    "text, n_slices, axes_within",
    [
        ("replica=2,fsdp=4", 2, "data"),
        ("replica=4,fsdp=2,tensor=2", 4, "data tensor"),
        ("replica=2,fsdp=4,tensor=2", 4, "tensor"),
        ("fsdp=8,tensor=2", 4, "tensor"),
    ],
)
def test_slices_are_spread_along_the_outermost_axes(text, n_slices, axes_within):
    layout = Layout.parse(text)
    devices = devices_of(n_slices, layout.n_devices // n_slices)
    made = mesh(layout.sizes, devices)
    slices = np.vectorize(lambda device: device.slice_index)(made.devices)
    for axis in axes_within.split():
        i = made.axis_names.index(axis)
        assert (slices == slices.take([0], axis=i)).all(), axis
    assert len(set(made.devices.flat)) == layout.n_devices


def test_slices_that_no_axis_divides_are_refused():
    with pytest.raises(ValueError, match=r"data 4 .*among 3 slices; replica=3"):
        mesh({"data": 4}, devices_of(3, 4))


def test_one_slice_keeps_the_order_of_its_devices():
    made = mesh({"data": 4, "tensor": 2}, jax.devices())
    assert list(made.devices.flat) == jax.devices()
