"""Rates come from rows and from the table of hardware; unknown ones are None."""

import dataclasses

import pytest

from jaxpar import hardware
from jaxpar.metrics.meter import Meter, meter_on

ROW = {"step": 1, "loss": 2.0, "tokens": 4096.0, "seconds": 0.5}


@dataclasses.dataclass(frozen=True)
class Device:
    device_kind: str


def test_a_meter_adds_rates_and_keeps_the_rest():
    row = Meter(step_flops=1e12, peak_flops=8e12)(ROW)
    assert row == {**ROW, "tokens_per_second": 8192.0, "mfu": 0.25}


def test_a_step_is_held_against_all_devices():
    meter = meter_on([Device("NVIDIA H200")] * 8, step_flops=3e12)
    assert meter == Meter(3e12, 8 * 989.4e12)


def test_one_unknown_device_makes_the_mfu_unknown():
    meter = meter_on([Device("NVIDIA H200"), Device("cpu")], step_flops=1e12)
    assert meter(ROW)["mfu"] is None
    assert meter(ROW)["tokens_per_second"] == 8192.0


@pytest.mark.parametrize("kind", hardware.KINDS)
def test_every_peak_has_a_source_and_is_plausible(kind):
    assert hardware.KINDS[kind].source
    assert 1e13 < hardware.peak_flops(kind) < 1e16


def test_a_kind_that_is_not_in_the_table_has_no_peak():
    assert hardware.peak_flops("cpu") is None


def test_a_step_without_seconds_has_no_rates():
    row = Meter(step_flops=1e12, peak_flops=8e12)({**ROW, "seconds": None})
    assert row["tokens_per_second"] is None and row["mfu"] is None
