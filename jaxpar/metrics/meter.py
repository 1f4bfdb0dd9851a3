"""Rates of a training step: tokens per second, share of the hardware's peak."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from jaxpar import hardware

# The gradient of a product is two more products of the same size.
STEP_PER_FORWARD = 3


@dataclasses.dataclass(frozen=True)
class Meter:
    """Adds `tokens_per_second` and `mfu` to a step's row.

    step_flops: model FLOPs of one whole step, over all devices (recomputed ones do not
    count). peak_flops: of all devices together; None where one of them is unknown.
    """

    step_flops: float
    peak_flops: float | None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its rates; reads `tokens` and `seconds`."""
        seconds = row["seconds"]
        rates = {"tokens_per_second": row["tokens"] / seconds, "mfu": None}
        if self.peak_flops is not None:
            rates["mfu"] = self.step_flops / seconds / self.peak_flops
        return {**row, **rates}


def meter_on(devices: Iterable[Any], *, forward_flops: float) -> Meter:
    """The meter of a step on these devices; forward_flops as of `model_flops`."""
    peaks = [hardware.peak_flops(device.device_kind) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    peak = sum(known) if len(known) == len(peaks) else None
    return Meter(STEP_PER_FORWARD * forward_flops, peak)
