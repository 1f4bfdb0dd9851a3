"""AutoLayout: a layout that is chosen for the devices that there are."""

import collections
import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxpar.config import Spelled
from jaxpar.errors import UserError
from jaxpar.partition.layout import Layout

REQUEST = re.compile(r"auto(\(cpu=(?P<quote>[\"']?)(?P<cpu>[^\"']+)(?P=quote)\))?")


@dataclasses.dataclass(frozen=True)
class AutoLayout(Spelled):
    """A layout that pretrain or finetune chooses when it starts: see `choose_layout`.

    config.json keeps this request, the receipt what was chosen.
    """

    cpu: str = ""
    """Layout on a CPU, over simulated devices; "": one device, or all of --devices."""
    spelling: str = dataclasses.field(init=False, default="auto")
    """As `parse` reads it: auto, or auto(cpu="data=4,tensor=2")."""

    def __post_init__(self):
        if self.cpu:
            cpu = Layout.parse(self.cpu).spelling
            object.__setattr__(self, "cpu", cpu)
            object.__setattr__(self, "spelling", f'auto(cpu="{cpu}")')

    @classmethod
    def parse(cls, text: str) -> "AutoLayout":
        """The request that a text such as auto(cpu="data=8") spells.

        Raises:
          UserError: it spells none.
        """
        found = REQUEST.fullmatch(text.strip())
        if not found:
            raise UserError(
                f'Layout {text!r}: write auto, or auto(cpu="data=4,tensor=2").'
            )
        return cls(found["cpu"] or "")


AnyLayout = Layout | AutoLayout


def auto(cpu: str = "") -> AutoLayout:
    """A layout chosen for the devices that there are; cpu: where these are CPUs."""
    return AutoLayout(cpu)


def parse_layout(text: str) -> AnyLayout:
    """The layout, or the request for one, that a text spells."""
    kind = AutoLayout if text.strip().startswith("auto") else Layout
    return kind.parse(text)


@dataclasses.dataclass(frozen=True)
class Demand:
    """What has to be laid out over the devices.

    check: refuses, as a UserError, a layout that cannot split the model. state_bytes:
    what each device then holds of parameters and optimizer state.
    """

    batch_size: int
    microbatches: int
    check: Callable[[Layout], object]
    state_bytes: Callable[[Layout], int]


def choose_layout(
    n_devices: int, demand: Demand, *, per_host: int, memory: int | None = None
) -> Layout:
    """The layout of these devices for a model and its batch.

    `data`, or `fsdp` where the state would take more than half of a device's memory;
    where the batch has too few rows for all devices, or no such layout can split the
    model, `tensor` within a host, as little of it as will do. Where the state is too
    large for that under every such layout, the one that leaves the least on a device.

    per_host: devices that fast links connect. memory: bytes of a device, if known.

    Raises:
      UserError: nothing fits; names the nearest batch sizes that would.
    """
    ways = _divisors(math.gcd(n_devices, per_host))
    refused: list[UserError] = []
    legal: dict[int, list[Layout]] = {}
    for tensor in ways:
        for word in ("data", "fsdp"):
            layout = _layout(word, n_devices // tensor, tensor)
            try:
                demand.check(layout)
            except UserError as error:
                refused.append(error)
            else:
                legal.setdefault(layout.batch_divisor, []).append(layout)
    if not legal:
        raise refused[0]
    layouts = [
        layout
        for pieces, fitting in legal.items()
        if demand.batch_size % (pieces * demand.microbatches) == 0
        for layout in fitting
    ]
    if not layouts:
        raise _no_such_batch(n_devices, demand, list(legal))
    for layout in layouts:
        sliced = "fsdp" in layout.spelling
        if sliced or memory is None or demand.state_bytes(layout) <= memory / 2:
            return layout
    return min(layouts, key=demand.state_bytes)


def devices_per_host(devices: Sequence[Any], hosts: Sequence[str]) -> int:
    """The fewest devices that one host has.

    hosts: the name of the host of each process, by the process's number.
    """
    counts = collections.Counter(hosts[device.process_index] for device in devices)
    return min(counts.values())


def memory_of(devices: Sequence[Any]) -> int | None:
    """The least bytes of memory that JAX may use of one of these; None if unknown."""
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in devices]
    known = [limit for limit in limits if limit]
    return min(known) if len(known) == len(limits) else None


def _layout(word: str, data: int, tensor: int) -> Layout:
    return Layout.parse(f"{word}={data},tensor={tensor}")


def _divisors(n: int) -> list[int]:
    return [i for i in range(1, n + 1) if n % i == 0]


def _no_such_batch(n_devices: int, demand: Demand, pieces: Sequence[int]) -> UserError:
    divisors = [each * demand.microbatches for each in pieces]
    size = demand.batch_size
    below = max(size // divisor * divisor for divisor in divisors)
    above = min(-(-size // divisor) * divisor for divisor in divisors)
    near = f"{below} and {above}" if below else f"{above}"
    return UserError(
        f"layout=auto: batch_size={size} in {demand.microbatches} microbatches cannot "
        f"be divided among {n_devices} devices, with or without tensor parallelism; "
        f"the nearest legal sizes are {near}."
    )
