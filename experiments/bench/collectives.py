"""What does a training step send, and what would it have to send at least?

Counts the collectives of the compiled program, scans times their trips, and puts the
bytes that each device sends beside what the layout cannot do without (least_bytes.py).

    python -m experiments.bench.collectives fsdp=8 data=4,tensor=2+sp data=2,ring=4
    python -m experiments.bench.collectives --dtype float32,bfloat16 --chunks 1,4 \\
        --microbatches 1,4                     # a table, of all layouts below
    python -m experiments.bench.collectives --target h100 --experiment llama_7b \\
        --dtype bfloat16 --chunks 8 fsdp=16,tensor=2
    python -m experiments.bench.collectives fsdp=8 --microbatches 1,4 --gathers step

The compiler for CPUs widens what is sent in bfloat16, which no other does; float16 it
leaves alone. So there float16 stands in for bfloat16: as many bytes, the same step.
"""

import argparse
import collections
import dataclasses
import importlib
import itertools
import math
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp

from experiments.bench import program_text
from experiments.bench.least_bytes import least
from experiments.bench.program_text import Collective
from jaxpar.experiment import Experiment
from jaxpar.models import sizes
from jaxpar.nn.norm import RMSNorm
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.devices import simulate_devices
from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.own_rows import Gathers
from jaxpar.partition.precision import Precision
from jaxpar.pipeline.ticks import Schedule, microbatches
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe
from jaxpar.train.step import make_train_step

T = 64
MODEL = sizes.llama(
    vocab_size=2048, n_layers=8, d_embed=256, n_heads=8, n_kv_heads=8, d_mlp=768,
    max_positions=T, qk_norm=RMSNorm(), tied=True,
)  # fmt: skip
LAYOUTS = (
    "data=8", "zero1=8", "fsdp=8", "replica=2,data=4", "replica=2,fsdp=4",
    "data=4,tensor=2", "data=4,tensor=2+sp", "fsdp=4,tensor=2", "data=2,ring=4",
    "data=2,context=4", "data=2,ulysses=4", "fsdp=2,ring=4", "tensor=8",
)  # fmt: skip
TARGETS = ("cpu", "h100")


@dataclasses.dataclass(frozen=True)
class Case:
    """A step whose bytes are counted."""

    layout: str
    dtype: str = "float32"
    """Type of the computation."""
    chunks: int = 1
    """Pieces of a device's part of each row, scored one after another."""
    microbatches: int = 1
    params: str = "float32"
    """Type of the parameters."""
    target: str = "cpu"
    """What it is compiled for: one of TARGETS."""
    experiment: str = ""
    """The module in experiments/ whose model and length of rows it has; else MODEL."""
    gathers: Gathers = "microbatch"
    """How often fsdp gathers parameters; the least is that of `microbatch`."""

    @property
    def parsed(self) -> Layout:
        """The layout as a value."""
        return Layout.parse(self.layout)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of a step, and their length."""
        if self.experiment:
            parts = self.microbatches // self.parsed.n_stages or 1
            rows = 4 * self.parsed.batch_divisor * parts
            return rows, self._experiment.data.seq_len
        return 32, T

    @property
    def recipe(self) -> Recipe:
        """The model with AdamW, in the types that its compiler is given."""
        (axes,) = self.parsed.split(("seq",), "computed")
        part = self.shape[1] // math.prod(self.parsed.sizes[axis] for axis in axes)
        stand_in = {"bfloat16": "float16"} if self.target == "cpu" else {}
        params, compute = (stand_in.get(t, t) for t in (self.params, self.dtype))
        return Recipe(
            self._experiment.model if self.experiment else MODEL,
            CausalLM(chunk=part // self.chunks),
            AdamW(1e-3, warmup_steps=1, decay_steps=9),
            Precision(params=params, compute=compute),
        )

    @property
    def _experiment(self) -> Experiment:
        return importlib.import_module(f"experiments.{self.experiment}").experiment


def placed_for(layout: Layout, target: str) -> Placed:
    """The layout on simulated CPU devices, or on H100s that need not be there."""
    if target == "cpu":
        return layout.on(jax.devices()[: layout.n_devices])
    from experiments.bench.targets import CUDA_MISSING, h100s, has_cuda

    if not has_cuda():
        raise SystemExit(f"--target {target} {CUDA_MISSING}.")
    return layout.on(h100s(layout.n_devices))


def compiled_step(case: Case, placed: Placed) -> Any:
    """The program of a training step, compiled."""
    rows = placed.sharding(("batch", "seq"))
    field = jax.ShapeDtypeStruct(case.shape, jnp.int32, sharding=rows)
    weights = jax.ShapeDtypeStruct(case.shape, jnp.float32, sharding=rows)
    names = ("tokens", "targets", "positions", "segments")
    batch = {**dict.fromkeys(names, field), "weights": weights}
    step = make_train_step(
        case.recipe,
        placed,
        microbatches=case.microbatches,
        fsdp_gathers=case.gathers,
    )
    lowered = step.lower(case.recipe.target(placed), batch)
    # How well a CPU's code is made changes nothing about what is sent.
    compiler = {"xla_backend_optimization_level": 0} if case.target == "cpu" else None
    return lowered.compile(compiler_options=compiler)


def count(case: Case) -> tuple[list[Collective], dict[str, float]]:
    """The collectives of a case, and the least that it must send."""
    program = compiled_step(case, placed_for(case.parsed, case.target))
    temporaries = program.memory_analysis().temp_size_in_bytes
    print(f"\n{case}: {temporaries / 2**20:,.1f} MiB of temporaries")
    found = program_text.collectives(program.as_text(), case.parsed.sizes)
    if case.gathers == "round" and case.parsed.n_rounds > 1:
        n = microbatches(case.parsed, case.microbatches, case.shape[0])
        found = as_rounds_run(found, case.parsed, n)
    return found, least(case.recipe, case.parsed, *case.shape, case.microbatches)


def as_rounds_run(
    found: Sequence[Collective], layout: Layout, microbatches: int
) -> list[Collective]:
    """What stages send that gather once a round, each at ticks of its own.

    The program asks them at every tick, in conditionals of which `program_text` counts
    each branch. A round's are taken where its stage enters it, but for the first one,
    which stands outside the ticks.
    """
    S = layout.n_stages
    schedule = Schedule(S, microbatches // S, layout.n_rounds)
    entered = schedule.n_turns // S - 1
    return [
        dataclasses.replace(each, times=entered)
        if each.kind in ("all-gather", "reduce-scatter")
        and each.times == schedule.n_ticks
        and "/cond/" in each.where
        else each
        for each in found
    ]


def report(case: Case, *, verbose: bool = False) -> float:
    """Prints the collectives of a case; how many times the least it sends."""
    found, need = count(case)
    return print_counts(found, need, verbose=verbose)


def print_counts(
    found: Sequence[Collective], need: dict[str, float], *, verbose: bool = False
) -> float:
    """Prints what is sent by axes, kind and type; how many times the least it is."""
    for each in found if verbose else ():
        print(f"  {each.times:4} x {each.sent:12,.0f} {each.dtype:5}{each.kind:18} "
              f"{'+'.join(each.axes):14} {each.where[-90:]}")  # fmt: skip
    print(f"{'axes':18}{'kind':20}{'type':6}{'count':>6}{'MB sent':>12}")
    sent: dict[bool, float] = collections.defaultdict(float)
    for (axes, kind, dtype), (times, size) in program_text.totals(found).items():
        print(f"{axes:18}{kind:20}{dtype:6}{times:6}{size / 1e6:12.3f}")
        sent[axes == "tensor"] += size
    for name, size in need.items():
        if size:
            print(f"at least {size / 1e6:.3f} MB for {name}")
    if need["tensor"]:
        print(f"over tensor alone: {sent[True] / need['tensor']:.3f}")
    total, floor = sum(sent.values()), sum(need.values())
    ratio = total / floor
    print(f"sent {total / 1e6:.3f} MB, at least {floor / 1e6:.3f} MB: {ratio:.3f}")
    return ratio


def print_table(ratios: dict[Case, float]) -> None:
    """The ratios, a layout in each row."""
    cells: dict[str, dict[tuple, str]] = collections.defaultdict(dict)
    for case, ratio in ratios.items():
        column = (case.dtype, case.chunks, case.microbatches)
        cells[case.layout][column] = f"{ratio:.2f}"
    columns = list(dict.fromkeys(c for row in cells.values() for c in row))
    heads = [f"{dtype}, {c} x {m}" for dtype, c, m in columns]
    print("\nratio to the least; chunks of the loss x microbatches")
    print(f"| layout | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    for layout, row in cells.items():
        print(f"| {layout} | {' | '.join(row.get(c, '') for c in columns)} |")


def main() -> None:
    """Counts the layouts of the command line, in all combinations of its options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layouts", nargs="*", default=LAYOUTS)
    parser.add_argument("--dtype", default="float32", help="such as float32,bfloat16")
    parser.add_argument("--params", default="float32", help="type of the parameters")
    parser.add_argument("--chunks", default="1", help="such as 1,4")
    parser.add_argument("--microbatches", default="1", help="such as 1,4")
    parser.add_argument("--target", default="cpu", choices=TARGETS)
    parser.add_argument("--experiment", default="", help="such as llama_7b")
    parser.add_argument("--gathers", default="microbatch", choices=get_args(Gathers))
    parser.add_argument("-v", action="store_true", help="list each collective")
    options = parser.parse_args()
    if options.target == "cpu":
        simulate_devices(max(Layout.parse(text).n_devices for text in options.layouts))
    lists = (options.dtype, options.chunks, options.microbatches)
    ratios = {}
    for layout in options.layouts:
        for dtype, c, m in itertools.product(*(text.split(",") for text in lists)):
            case = Case(
                layout, dtype, int(c), int(m), options.params, options.target,
                options.experiment, options.gathers,
            )  # fmt: skip
            ratios[case] = report(case, verbose=options.v)
    print_table(ratios)


if __name__ == "__main__":
    main()
