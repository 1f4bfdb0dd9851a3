"""Choosing devices: the only place that asks which there are."""

import contextlib
import os
import sys
from typing import Any

import jax

from jaxpar.errors import UserError
from jaxpar.partition import cluster
from jaxpar.partition.layout import Layout


def simulate_devices(n: int) -> None:
    """Makes CPU-only machines show n devices; no backend may have started yet.

    n counts all processes together, each of which shows its share.
    """
    processes = cluster.count()
    if n % processes:
        above = n - n % processes + processes
        near = f"{above - processes} and {above}" if n > processes else f"{above}"
        raise UserError(
            f"{n} simulated devices cannot be shared out evenly among {processes} "
            f"processes; they can be {near}."
        )
    jax.config.update("jax_num_cpu_devices", n // processes)


def choose_devices(
    layout: Layout, devices: int | None = None, *, may_idle: bool = False
) -> list[Any]:
    """The devices that a layout runs on; simulated, aloud, where there is only a CPU.

    devices: how many CPU devices to simulate, over all processes together (None: as
    many as the layout needs).
    may_idle: whether more visible devices than needed are accepted; never where there
    are several processes, since each of them needs devices of the mesh.
    """
    need = layout.n_devices
    if devices is not None and devices < need:
        raise UserError(
            f"Layout {layout.spelling} needs {need} devices; --devices says {devices}."
        )
    unasked = devices is None and _cpu_only() and need > 1
    if _cpu_only():
        # Fails once a backend runs; what is visible then is checked below.
        with contextlib.suppress(RuntimeError):
            simulate_devices(devices or need)
    visible = jax.devices()
    if unasked and len(visible) >= need:
        cluster.print_once(
            f"No accelerator: simulating {need} devices on the CPU.", file=sys.stderr
        )
        visible = visible[:need]
    if len(visible) < need:
        raise UserError(
            f"Layout {layout.spelling} needs {need} devices; {len(visible)} are "
            "visible. Choose a smaller --layout, or on a CPU restart with --devices "
            f"{need}."
        )
    if len(visible) > need and (not may_idle or cluster.count() > 1):
        word = next((w for w in ("fsdp", "zero1") if w in layout.spelling), "data")
        raise UserError(
            f"Layout {layout.spelling} would leave {len(visible) - need} of "
            f"{len(visible)} devices idle; --layout {word}={len(visible)} uses all."
        )
    return list(visible[:need])


def _cpu_only() -> bool:
    """Whether nothing but the CPU can be meant; asks no backend to start."""
    platforms = getattr(jax.config, "jax_platforms", None) or os.environ.get(
        "JAX_PLATFORMS", ""
    )
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not (
        os.path.exists("/dev/nvidiactl")
        or os.path.exists("/dev/accel0")
        or os.path.exists("/dev/vfio/0")
    )
