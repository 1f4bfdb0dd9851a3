"""Choice of devices for a layout: accelerators, or CPU devices that are simulated."""

import contextlib
import importlib.util
import os
import re
from typing import Any

import jax

from jaxpar.errors import UserError, one_line
from jaxpar.partition import cluster, launchers
from jaxpar.partition.layout import Layout
from jaxpar.tables import say_once

CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
"""The modules by which jax computes on NVIDIA devices."""
XLA_FLAG = r"--xla_force_host_platform_device_count=(\d+)"
"""The older way to simulate devices, in XLA_FLAGS."""


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
    simulates_unasked = devices is None and without_accelerator() and need > 1
    visible = visible_devices(devices or need)
    if simulates_unasked and len(visible) >= need:
        text = f"No accelerator: simulating {need} devices on the CPU."
        say_once(text, is_first=cluster.is_first())
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


def visible_devices(devices: int | None = None) -> list[Any]:
    """The devices that there are; on a CPU as many as are simulated.

    devices: how many CPU devices to simulate first, unless a backend already runs.

    Raises:
      UserError: JAX cannot start a platform, or not the one that JAX_PLATFORMS names.
    """
    if devices is not None and without_accelerator():
        # Fails once a backend runs; then what is visible is what there is.
        with contextlib.suppress(RuntimeError):
            simulate_devices(devices)
    try:
        return jax.devices()
    # An empty AssertionError where a platform is named and its plugin is not there.
    except (RuntimeError, AssertionError) as error:
        why = f" ({one_line(error)})" if str(error) else ""
        found, then = f"JAX finds no device that it can use here{why}.", "Set"
        if platforms := _platforms():
            found = f"JAX_PLATFORMS={platforms}: JAX can use no such device here{why}."
            then = "Unset it, or set"
        raise UserError(
            f"{found} {then} JAX_PLATFORMS=cpu for the CPU; GPUs need jax's extra "
            "cuda12 or cuda13, TPUs its extra tpu."
        ) from error


def simulated_devices() -> int:
    """How many CPU devices all processes were set to simulate; 0 where none was."""
    flag = re.search(XLA_FLAG, os.environ.get("XLA_FLAGS", ""))
    config: Any = jax.config
    own = max(config.jax_num_cpu_devices, int(flag[1]) if flag else 0)
    return max(own, 0) * cluster.count()


def without_accelerator() -> bool:
    """Whether JAX will run on the CPU; does not start a backend to find out.

    Says what to install where there is an NVIDIA device that JAX cannot use.
    """
    if platforms := _platforms():
        return platforms.split(",")[0] == "cpu"
    if launchers.has_tpu():
        return False
    if not os.path.exists("/dev/nvidiactl"):
        return True
    if any(map(importlib.util.find_spec, CUDA_PLUGINS)):
        return False
    say_once(
        "There is an NVIDIA device, and the installed jax knows CPUs alone: "
        'pip install -e ".[cuda12]" (or cuda13) brings what it needs.',
        is_first=cluster.is_first(),
    )
    return True


def _platforms() -> str:
    asked = getattr(jax.config, "jax_platforms", None)
    return asked or os.environ.get("JAX_PLATFORMS", "")
