"""Rates of a training step: tokens per second, and model FLOPs utilisation (MFU)."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from jaxpar import hardware
from jaxpar.metrics.sinks import Row


@dataclasses.dataclass(frozen=True)
class Meter:
    """Adds `tokens_per_second` and `mfu` to a step's row; None where it has no seconds.

    mfu is the model FLOPs per second as a fraction of the hardware's peak, None where
    the peak is unknown, too.
    """

    step_flops: float
    """Model FLOPs of a step on all devices, without rematerialisation, and without
    gradients that no trained parameter needs."""
    peak_flops: float | None
    """FLOPs per second of all devices together; None where one's is unknown."""

    def __call__(self, row: Row) -> Row:
        """The row with its rates, from its `tokens` and `seconds`."""
        seconds = row["seconds"]
        rates = {"tokens_per_second": None, "mfu": None}
        if seconds:
            rates["tokens_per_second"] = row["tokens"] / seconds
        if seconds and self.peak_flops is not None:
            rates["mfu"] = self.step_flops / seconds / self.peak_flops
        return {**row, **rates}


def meter_on(devices: Iterable[Any], *, step_flops: float) -> Meter:
    """The meter of a training step on these devices.

    step_flops: model FLOPs of the whole step, as `training_flops` counts them.
    """
    peaks = [hardware.peak_flops(device.device_kind) for device in devices]
    known = [peak for peak in peaks if peak is not None]
    peak = sum(known) if len(known) == len(peaks) else None
    return Meter(step_flops, peak)
