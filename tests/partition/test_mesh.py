"""Only the outermost axes of a mesh cross the slow network."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxpar.partition.layout import Layout
from jaxpar.partition.mesh import mesh


@dataclasses.dataclass(frozen=True)
class Device:
    """What JAX reads of a device to place it."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "gpu"
    device_kind: str = "of this test"


def slices(n: int, each: int) -> list[Device]:
    # Interleaved, so that their order alone would put slices beside each other.
    return [Device(id=i, slice_index=i % n) for i in range(n * each)]


@pytest.mark.parametrize(
    "text, n, within",
    [
        ("replica=2,fsdp=4", 2, "data"),
        ("replica=4,fsdp=2,tensor=2", 4, "data tensor"),
        ("replica=2,fsdp=4,tensor=2", 4, "tensor"),
        ("fsdp=8,tensor=2", 4, "tensor"),
    ],
)
def test_slices_are_spread_along_the_outermost_axes(text, n, within):
    layout = Layout.parse(text)
    made = mesh(layout.sizes, slices(n, layout.n_devices // n))
    of = np.vectorize(lambda device: device.slice_index)(made.devices)
    for axis in within.split():
        at = made.axis_names.index(axis)
        assert (of == of.take([0], axis=at)).all(), axis
    assert len(set(made.devices.flat)) == layout.n_devices


def test_slices_that_no_axis_divides_are_refused():
    with pytest.raises(ValueError, match=r"data 4 .*among 3 slices; replica=3"):
        mesh({"data": 4}, slices(3, 4))


def test_one_slice_keeps_the_order_of_its_devices():
    made = mesh({"data": 4, "tensor": 2}, jax.devices())
    assert list(made.devices.flat) == jax.devices()
