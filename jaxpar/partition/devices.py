"""Choice of devices for a layout; the only code that asks which devices there are."""

import contextlib
import os
import sys
from typing import Any

import jax

from jaxpar.errors import UserError
from jaxpar.partition import cluster
from jaxpar.partition.layout import Layout


def simulate_devices(n: int) -> None:
    """Makes JAX show n CPU devices; no backend may have started yet.

    n counts the devices of all processes together.

    Raises:
      UserError: the processes cannot have equally many devices.
      RuntimeError: a backend has already started.
    """
    processes = cluster.count()
    if n % processes:
        above = n - n % processes + processes
        nearest = f"{above - processes} and {above}" if n > processes else f"{above}"
        raise UserError(
            f"{n} simulated devices cannot be divided evenly among {processes} "
            f"processes; they can be {nearest}."
        )
    jax.config.update("jax_num_cpu_devices", n // processes)


def choose_devices(
    layout: Layout, devices: int | None = None, *, may_idle: bool = False
) -> list[Any]:
    """The devices that a layout runs on; simulated, with a notice, on a CPU.

    devices: how many CPU devices to simulate, over all processes together (None: as
    many as the layout needs). may_idle: whether more devices than needed may be
    visible; never with several processes, since each of them needs devices of the
    mesh.

    Raises:
      UserError: more or fewer devices are visible than the layout needs.
    """
    need = layout.n_devices
    if devices is not None and devices < need:
        raise UserError(
            f"Layout {layout.spelling} needs {need} devices; --devices says {devices}."
        )
    simulates_unasked = devices is None and _cpu_only() and need > 1
    if _cpu_only():
        # Fails once a backend runs; then the visible devices are checked below.
        with contextlib.suppress(RuntimeError):
            simulate_devices(devices or need)
    visible = jax.devices()
    if simulates_unasked and len(visible) >= need:
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
    """Whether JAX will run on the CPU; does not start a backend to find out."""
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
