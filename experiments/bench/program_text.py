"""The collectives in the text of a compiled program.

The text is that of XLA's compilers for CPUs or NVIDIA devices, or what the partitioner
hands to either of them.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import numpy as np

KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
)  # fmt: skip
BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4,
    "f64": 8, "s64": 8, "u64": 8,
}  # fmt: skip
OPERATION = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
CALLED = re.compile(
    r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program, as far as its operands have one type."""

    kind: str
    """One of KINDS."""
    axes: tuple[str, ...]
    """The mesh axes over which it runs."""
    dtype: str
    """The type that is sent, as XLA writes it: f32, bf16."""
    sent: float
    """Bytes that each device sends, each time that it runs."""
    times: int
    """How often it runs in a step."""
    where: str
    """The operation of the traced program from which it comes."""


def collectives(program: str, sizes: dict[str, int]) -> list[Collective]:
    """All collectives that a program runs; an asynchronous one counts where it starts.

    sizes: the mesh, axis to size, in order; its devices are numbered along the axes.

    Raises:
      ValueError: a collective stands in a loop whose number of trips is not known.
    """
    bodies = computations(program)
    entry = re.search(r"^ENTRY %?([\w.\-]+)", program, re.MULTILINE)
    if not entry:
        raise ValueError("The text has no ENTRY computation.")
    times, n_devices = trips(bodies, entry[1]), math.prod(sizes.values())
    found = []
    for name, lines in bodies.items():
        for line in lines:
            op = OPERATION.search(line)
            if not op or not times[name]:
                continue
            if math.isnan(times[name]):
                raise ValueError(f"How often does it run? {line.strip()[:200]}")
            groups = groups_of(line, n_devices)
            axes = axes_of(groups, sizes)
            source = re.search(r'op_name="([^"]*)"', line)
            for dtype, size in result_bytes(op[1], op[2], bool(op[3])).items():
                sent = bytes_sent(op[2], size, groups, n_devices)
                where = source[1] if source else ""
                found.append(
                    Collective(op[2], axes, dtype, sent, int(times[name]), where)
                )
    return found


def computations(program: str) -> dict[str, list[str]]:
    """The lines of each named computation."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in program.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name = head[1]
            found[name] = []
        elif name:
            found[name].append(line)
    return found


def trips(bodies: dict[str, list[str]], entry: str) -> dict[str, float]:
    """How often each computation runs in one run of the entry; NaN: not known.

    Of a conditional, each branch counts as if it were taken.
    """
    times: dict[str, float] = collections.defaultdict(float)

    def visit(name: str, n: float) -> None:
        times[name] += n
        for line in bodies.get(name, ()):
            if "-done(" in line or "-update(" in line:
                continue  # It names the computation that its start has called.
            each = trips_of(line, bodies) if " while(" in line else 1
            for callee in CALLED.findall(line):
                visit(callee, n * each)
            if branches := re.search(r"branch_computations=\{([^}]*)\}", line):
                for callee in branches[1].split(","):
                    visit(callee.strip().lstrip("%"), n)

    visit(entry, 1)
    return times


def trips_of(line: str, bodies: dict[str, list[str]]) -> float:
    """How often a loop runs: as XLA notes it, or else as its condition compares."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    test = "\n".join(bodies.get(condition[1], ())) if condition else ""
    limits = re.findall(r"= s(?:32|64)\[\] constant\((\d+)\)", test)
    counts = re.search(r"ROOT .* compare\(.*direction=LT", test)
    return int(limits[0]) if counts and len(limits) == 1 else math.nan


def result_bytes(result: str, kind: str, starts: bool) -> dict[str, int]:
    """Bytes of a collective's results by type; `result` is the text of its shape.

    Where it only starts, most kinds list their operands first.
    """
    if starts and kind != "all-reduce":
        result = _members(result)[1]
    found: dict[str, int] = collections.Counter()
    for dtype, dims in re.findall(r"([a-z]\w*)\[([\d,]*)\]", result):
        found[dtype] += BYTES[dtype] * math.prod(int(i) for i in dims.split(",") if i)
    return dict(found)


def _members(text: str) -> list[str]:
    """The members of a tuple's text, which may be tuples themselves."""
    members, depth = [""], 0
    for letter in text.strip()[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            members.append("")
        else:
            members[-1] += letter
    return members


def groups_of(line: str, n_devices: int) -> np.ndarray:
    """A collective's groups of devices, [groups, n]; of a permutation its pairs."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        found = re.findall(r"\{(\d+),(\d+)", pairs[1])
        return np.array([[int(i) for i in pair] for pair in found])
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", line):
        rows = re.findall(r"\{([\d,]+)\}", listed[1])
        return np.array([[int(i) for i in row.split(",")] for row in rows])
    if named := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", line
    ):
        return _mesh_groups(named[1], named[2], named[3], n_devices)
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line)
    if iota:
        return _iota(iota[2]).reshape([int(i) for i in iota[1].split(",")])
    return np.arange(n_devices)[None]


def _mesh_groups(mesh: str, ids: str, over: str, n_devices: int) -> np.ndarray:
    """Groups over axes of a mesh: mesh "'a'=4,'b'=2", ids "[4,2]T(1,0)", over "'b'".

    'a':(2)2 is a part of an axis: of size 2, after one of size 2.
    """
    shape: dict[str, tuple[int, ...]] = {
        axis: (int(size),) for axis, size in re.findall(r"'(\w+)'=(\d+)", mesh)
    }
    chosen: list[tuple[str, int]] = []
    for axis, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", over):
        if size:
            parts = int(before), int(size)
            shape[axis] = (*parts, math.prod(shape[axis]) // math.prod(parts))
        chosen.append((axis, 1 if size else 0))
    places = [(axis, i) for axis, dims in shape.items() for i in range(len(dims))]
    at = [places.index(place) for place in chosen]
    devices = _iota(ids) if ids else np.arange(n_devices)
    devices = devices.reshape([size for dims in shape.values() for size in dims])
    moved = np.moveaxis(devices, at, range(-len(at), 0))
    return moved.reshape(-1, math.prod(devices.shape[i] for i in at))


def _iota(text: str) -> np.ndarray:
    """Device numbers as XLA writes them: "[4,2]T(1,0)" counts, then transposes."""
    dims, _, turned = text.partition("T")
    shape = [int(i) for i in re.findall(r"\d+", dims)]
    ids = np.arange(math.prod(shape)).reshape(shape)
    order = [int(i) for i in re.findall(r"\d+", turned)]
    return ids.transpose(order) if order else ids


def axes_of(groups: np.ndarray, sizes: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ."""
    places = np.array(np.unravel_index(groups, tuple(sizes.values())))
    varies = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(axis for axis, v in zip(sizes, varies, strict=True) if v)


def bytes_sent(kind: str, size: float, groups: np.ndarray, n_devices: int) -> float:
    """What each device sends in a collective whose results have `size` bytes.

    Around a ring, as every library does it that sends no more than it must. Of a
    permutation that leaves devices out, the mean.
    """
    n = groups.shape[1]
    if kind == "collective-permute":
        return size * int((groups[:, 0] != groups[:, 1]).sum()) / n_devices
    factors = {"all-reduce": 2 * (n - 1) / n, "reduce-scatter": n - 1}
    return size * factors.get(kind, (n - 1) / n)


def totals(found: Sequence[Collective]) -> dict[tuple[str, ...], tuple[int, float]]:
    """(mesh axes joined by +, kind, type) -> how many run, and bytes that they send."""
    table: dict[tuple[str, ...], tuple[int, float]] = {}
    for each in found:
        key = ("+".join(each.axes), each.kind, each.dtype)
        count, sent = table.get(key, (0, 0.0))
        table[key] = (count + each.times, sent + each.times * each.sent)
    return dict(sorted(table.items()))
