"""Placing an experiment on devices, with the layout that it names or lets be chosen."""

import contextlib
import socket
import sys

from jaxpar.experiment import Experiment
from jaxpar.partition import cluster
from jaxpar.partition.auto_layout import (
    AutoLayout,
    Demand,
    choose_layout,
    devices_per_host,
    memory_of,
)
from jaxpar.partition.devices import (
    choose_devices,
    simulate_devices,
    simulated_devices,
    visible_devices,
    without_accelerator,
)
from jaxpar.partition.layout import Layout, Placed
from jaxpar.tables import size_of
from jaxpar.train.state_bytes import state_bytes


def place(experiment: Experiment, devices: int | None = None) -> Placed:
    """The experiment's layout on the devices that there are, chosen if it is auto.

    devices: how many CPU devices to simulate.

    Raises:
      UserError: no layout of these devices fits, or the one that is named does not.
    """
    layout = layout_for(experiment, devices)
    return layout.on(choose_devices(layout, devices))


def simulate_for(experiment: Experiment, devices: int | None = None) -> None:
    """Simulates what `place` will need of devices on a CPU, before a backend starts."""
    if without_accelerator():
        layout = experiment.layout
        on_cpu = _on_cpu(layout) if isinstance(layout, AutoLayout) else layout
        # Fails once a backend runs; then `place` checks the visible devices.
        with contextlib.suppress(RuntimeError):
            simulate_devices(devices or simulated_devices() or on_cpu.n_devices)


def layout_for(experiment: Experiment, devices: int | None = None) -> Layout:
    """The layout of an experiment, as `place` takes it; says which one was chosen."""
    layout = experiment.layout
    if isinstance(layout, AutoLayout):
        layout = _chosen(experiment, layout, devices)
    experiment.check_layout(layout)
    return layout


def _chosen(experiment: Experiment, asked: AutoLayout, devices: int | None) -> Layout:
    if without_accelerator():
        on_cpu = _on_cpu(asked)
        # Devices that a notebook has simulated are as good as those of --devices.
        count = devices or simulated_devices() or on_cpu.n_devices
        if count == on_cpu.n_devices:
            return on_cpu
        devices = count
    visible = visible_devices(devices)
    hosts = cluster.gather(socket.gethostname())
    recipe, memory = experiment.recipe(), memory_of(visible)
    demand = Demand(
        experiment.data.batch_size,
        experiment.microbatches,
        check=recipe.abstract,
        state_bytes=lambda layout: sum(state_bytes(recipe, layout)),
    )
    per_host = devices_per_host(visible, hosts)
    layout = choose_layout(len(visible), demand, per_host=per_host, memory=memory)
    kind = visible[0].device_kind
    cluster.print_once(
        f"Layout {layout.spelling}, chosen for {len(visible)} x {kind}"
        f"{_why(demand, layout, memory)}; --layout takes another one.",
        file=sys.stderr,
    )
    return layout


def _on_cpu(asked: AutoLayout) -> Layout:
    return Layout.parse(asked.cpu or "data=1")


def _why(demand: Demand, layout: Layout, memory: int | None) -> str:
    """What decided for this layout, beside the number of devices."""
    reasons = []
    if "fsdp" in layout.spelling and memory is not None:
        whole = demand.state_bytes(
            Layout.parse(layout.spelling.replace("fsdp", "data"))
        )
        reasons.append(
            f"whole parameters and optimizer would take {size_of(whole)} of "
            f"{size_of(memory)}"
        )
    if "tensor" in layout.sizes:
        reasons.append(f"{demand.batch_size} rows")
    return f" ({'; '.join(reasons)})" if reasons else ""
