"""What does a training step send, and what would it have to send at least?

Counts the collectives in the compiled program, scans times their trips, and puts the
bytes that each device sends beside what the layout cannot do without.

    python experiments/bench/collectives.py fsdp=8 data=4,tensor=2+sp data=2,ring=4
"""

import collections
import dataclasses
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.models import sizes
from jaxpar.nn.norm import RMSNorm
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.devices import simulate_devices
from jaxpar.partition.layout import Layout, Placed
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe
from jaxpar.train.step import make_train_step

B, T = 32, 64
MODEL = sizes.llama(
    vocab_size=512, n_layers=8, d_embed=256, n_heads=8, n_kv_heads=8, d_mlp=768,
    max_positions=T, qk_norm=RMSNorm(), tied=True,
)  # fmt: skip
BYTES = {"f32": 4, "bf16": 2, "f64": 8, "s32": 4, "u32": 4, "pred": 1, "f16": 2}
KINDS = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program: how often it runs, and its bytes each time."""

    kind: str
    axes: tuple[str, ...]
    bytes: int
    times: int
    where: str


def compiled(text: str) -> tuple[str, Placed]:
    """The program of a step on a layout, and where it would run."""
    layout = Layout.parse(text)
    placed = layout.on(jax.devices()[: layout.n_devices])
    recipe = Recipe(MODEL, CausalLM(), AdamW(1e-3, warmup_steps=1, decay_steps=9))
    field = jax.ShapeDtypeStruct(
        (B, T), jnp.int32, sharding=placed.sharding(("batch", "seq"))
    )
    weights = jax.ShapeDtypeStruct((B, T), jnp.float32, sharding=field.sharding)
    names = ("tokens", "targets", "positions", "segments")
    batch = {**dict.fromkeys(names, field), "weights": weights}
    step = make_train_step(recipe, placed)
    return step.lower(recipe.target(placed), batch).compile().as_text(), placed


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


def trips(bodies: dict[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs in one run of the entry."""
    times: dict[str, int] = collections.Counter()

    def visit(name: str, n: int) -> None:
        times[name] += n
        for line in bodies.get(name, ()):
            known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            each = int(known[1]) if known and " while(" in line else 1
            for callee in re.findall(
                r"(?:body|to_apply|calls|computation)=%?([\w.\-]+)", line
            ):
                visit(callee, n * each)
            if branches := re.search(r"branch_computations=\{([^}]*)\}", line):
                for callee in branches[1].split(","):
                    visit(callee.strip().lstrip("%"), n)

    visit(entry, 1)
    return times


def groups_of(line: str, n_devices: int) -> np.ndarray | None:
    """The device groups [groups, members] of a collective; None of a permutation."""
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", line):
        rows = re.findall(r"\{([\d,]+)\}", listed[1])
        return np.array([[int(i) for i in row.split(",")] for row in rows])
    if named := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?)\))? \{(.*?)\}", line
    ):
        mesh = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        over = [list(mesh).index(axis) for axis in re.findall(r"'(\w+)'", named[3])]
        ids = _iota(named[2]) if named[2] else np.arange(n_devices)
        ids = ids.reshape([int(size) for size in mesh.values()])
        moved = np.moveaxis(ids, over, range(-len(over), 0))
        return moved.reshape(-1, math.prod(ids.shape[i] for i in over))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", line)
    if not iota:
        return None
    return _iota(iota[2]).reshape([int(i) for i in iota[1].split(",")])


def _iota(text: str) -> np.ndarray:
    """Device numbers as XLA writes them: "[4,2]T(1,0)" counts, then transposes."""
    dims, _, turned = text.partition("T")
    shape = [int(i) for i in re.findall(r"\d+", dims)]
    ids = np.arange(math.prod(shape)).reshape(shape)
    order = [int(i) for i in re.findall(r"\d+", turned)]
    return ids.transpose(order) if order else ids


def axes_of(line: str, placed: Placed) -> tuple[str, ...]:
    """The mesh axes that a collective runs over."""
    shape = tuple(placed.layout.sizes.values())
    groups = groups_of(line, math.prod(shape))
    if groups is None:
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
        listed = re.findall(r"\{([\d,]+)", pairs[1]) if pairs else []
        everyone = np.arange(math.prod(shape))[None]
        groups = np.array([[int(i) for i in pair.split(",")] for pair in listed])
        groups = groups if listed else everyone
    places = np.array(np.unravel_index(groups, shape))
    varies = (places != places[:, :, :1]).any(axis=(1, 2))
    return tuple(a for a, v in zip(placed.layout.sizes, varies, strict=True) if v)


def sent(kind: str, size: int, n: int) -> float:
    """Bytes that each of n devices sends, `size` being those of the larger side."""
    return {"all-reduce": 2 * size * (n - 1) / n, "collective-permute": size}.get(
        kind, size * (n - 1) / n
    )


def collectives(program: str, placed: Placed) -> list[Collective]:
    bodies = computations(program)
    entry = re.search(r"ENTRY %?([\w.\-]+)", program)
    assert entry
    times = trips(bodies, entry[1])
    found = []
    for name, lines in bodies.items():
        for line in lines:
            op = re.search(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(", line)
            if not op or not times[name]:
                continue
            whole = line.split("metadata=")[0].split("replica_groups")[0]
            shapes = re.findall(r"(\w+)\[([\d,]*)\]", op[1])
            total = sum(
                BYTES.get(kind, 4) * math.prod(int(i) for i in dims.split(",") if i)
                for kind, dims in shapes
            )
            axes = axes_of(line, placed)
            n = math.prod(placed.layout.sizes[axis] for axis in axes)
            if op[2] == "reduce-scatter":
                total *= n
            source = re.search(r'op_name="([^"]*)"', line)
            where = source[1] if source else whole[:40]
            found.append(
                Collective(
                    op[2], axes, round(sent(op[2], total, n)), times[name], where
                )
            )
    return found


def least(placed: Placed) -> dict[tuple[str, ...], float]:
    """Bytes that each device cannot help sending, by mesh axes; small ones left out."""
    layout, D, L = placed.layout, MODEL.d_embed, MODEL.n_layers
    sizes_ = layout.sizes
    data, context = sizes_.get("data", 1), sizes_.get("context", 1)
    tensor = sizes_.get("tensor", 1)
    params = 4 * sum(
        math.prod(leaf.shape)
        for leaf in jax.tree.leaves(
            Recipe(MODEL, CausalLM(), AdamW(1e-3, warmup_steps=1, decay_steps=9))
            .anatomy
            .shapes
        )
    ) / tensor  # fmt: skip
    need: dict[tuple[str, ...], float] = collections.Counter()
    ways = data * context
    batch = tuple(a for a in ("data", "context") if a in sizes_)
    if ways > 1:
        once = params * (ways - 1) / ways
        # Reduced and gathered again in both passes, or reduced and spread.
        need[batch] += 3 * once if "fsdp" in layout.spelling else 2 * once
    rows = 4 * B * T * D / ways
    if tensor > 1:
        # Two blocks a layer: in and out forward, the same backward, and once more in
        # for the gradient of the weights where the sequence is split between blocks.
        passes = 5 if "+sp" in layout.spelling else 4
        each = rows * (tensor - 1) / tensor
        need[("tensor",)] += 2 * L * passes * each
    keys = 2 * rows / tensor
    if layout.attention == "ring":
        need[("context",)] += L * keys * (2 * (context - 1) + context)
    elif layout.attention == "context":
        need[("context",)] += L * keys * 2 * (context - 1)
    elif layout.attention == "ulysses":
        # Queries, keys and values there, the result back; the same backward.
        need[("context",)] += L * 2 * (2 * keys) * (context - 1) / context
    return need


def report(text: str) -> float:
    """Prints the table of a layout; how many times the least it sends."""
    program, placed = compiled(text)
    table: dict[tuple, list[float]] = collections.defaultdict(lambda: [0, 0])
    for each in collectives(program, placed):
        row = table[(each.axes, each.kind)]
        row[0] += each.times
        row[1] += each.times * each.bytes
        if "-v" in sys.argv:
            print(f"  {each.times:4} x {each.bytes:10,} {each.kind:18} "
                  f"{'+'.join(each.axes):14} {each.where[-90:]}")  # fmt: skip
    print(f"\n{text}")
    print(f"{'axes':16}{'kind':20}{'count':>7}{'MB sent':>10}")
    for (axes, kind), (count, size) in sorted(table.items()):
        print(f"{'+'.join(axes):16}{kind:20}{count:7}{size / 1e6:10.3f}")
    need = sum(least(placed).values())
    total = sum(size for _, size in table.values())
    print(
        f"sent {total / 1e6:.3f} MB, at least {need / 1e6:.3f} MB: {total / need:.2f}"
    )
    return total / need


def main() -> None:
    simulate_devices(8)
    for text in [word for word in sys.argv[1:] if word != "-v"]:
        report(text)


if __name__ == "__main__":
    main()
