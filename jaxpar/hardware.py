"""Peak FLOP/s of the known accelerators, each with its source."""

import dataclasses

TERA = 10**12


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of device, as JAX counts devices: a TPU v2 or v3 chip is two."""

    peak_flops: float
    """Dense FLOP/s in bfloat16, or float16 where the hardware has no bfloat16.

    Without sparsity and at the advertised clock; a multiply-add is two FLOPs.
    """
    source: str
    """Where the number is published, and how it is given there."""


CLOUD_TPU = "cloud.google.com/tpu/docs/system-architecture-tpu-vm"
A100 = "NVIDIA A100 Tensor Core GPU datasheet: 312 TFLOPS"
V100 = "NVIDIA V100 datasheet: 125 TFLOPS of float16 (SXM2)"

KINDS: dict[str, Kind] = {
    "TPU v2": Kind(22.5 * TERA, f"{CLOUD_TPU}: 45 a chip of two cores"),
    "TPU v3": Kind(61.5 * TERA, f"{CLOUD_TPU}: 123 a chip of two cores"),
    "TPU v4": Kind(275 * TERA, f"{CLOUD_TPU}: 275 a chip"),
    "TPU v5 lite": Kind(197 * TERA, f"{CLOUD_TPU}: v5e, 197 a chip"),
    "TPU v5": Kind(459 * TERA, f"{CLOUD_TPU}: v5p, 459 a chip"),
    "TPU v6 lite": Kind(918 * TERA, f"{CLOUD_TPU}: v6e, 918 a chip"),
    "Tesla V100-SXM2-16GB": Kind(125 * TERA, V100),
    "Tesla V100-SXM2-32GB": Kind(125 * TERA, V100),
    "NVIDIA A100-SXM4-40GB": Kind(312 * TERA, A100),
    "NVIDIA A100-SXM4-80GB": Kind(312 * TERA, A100),
    "NVIDIA A100-PCIE-40GB": Kind(312 * TERA, A100),
    "NVIDIA A100 80GB PCIe": Kind(312 * TERA, A100),
    "NVIDIA L4": Kind(121 * TERA, "NVIDIA L4 datasheet: 242 with sparsity"),
    "NVIDIA L40S": Kind(362 * TERA, "NVIDIA L40S datasheet: 362.05"),
    "NVIDIA H100 80GB HBM3": Kind(
        989.4 * TERA, "NVIDIA H100 datasheet, SXM: 1,979 with sparsity"
    ),
    "NVIDIA H100 PCIe": Kind(
        756 * TERA, "NVIDIA H100 datasheet, PCIe: 1,513 with sparsity"
    ),
    "NVIDIA H200": Kind(989.4 * TERA, "NVIDIA H200 datasheet: 1,979 with sparsity"),
    "NVIDIA B200": Kind(2_250 * TERA, "NVIDIA DGX B200 datasheet: 36 PFLOPS by eight"),
}
"""The known devices, by `jax.Device.device_kind`."""


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of a device of this kind; None for an unknown kind."""
    kind = KINDS.get(device_kind)
    return None if kind is None else kind.peak_flops
