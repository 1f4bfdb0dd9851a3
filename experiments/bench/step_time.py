"""How long does a step take, beside the same step of another version of jaxpar?

Both versions stand in one process, and their steps alternate (A B B A), so that what
else the machine does falls on both alike. Devices are simulated on a CPU; the model is
about the quickstart's, with 16 rows of 256 tokens.

    git worktree add ../before HEAD~1
    python experiments/bench/step_time.py ../before data=8
    python experiments/bench/step_time.py . data=8 --exact 8    # what exact costs
"""

import argparse
import importlib
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

B, T, V = 16, 256, 4096
HERE = pathlib.Path(__file__).resolve().parents[2]


def imported_from(root: pathlib.Path) -> Callable[[str], Any]:
    """Forgets which jaxpar was imported; a function that imports modules of this one.

    Raises:
      SystemExit: Python finds another one first.
    """
    for name in [n for n in sys.modules if n.partition(".")[0] == "jaxpar"]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    found = pathlib.Path(str(importlib.import_module("jaxpar").__file__))
    if root not in found.parents:
        raise SystemExit(f"{found} was imported, not the jaxpar of {root}.")
    return importlib.import_module


def stepper(root: pathlib.Path, text: str, **options: int) -> Callable[[], float]:
    """A function that takes one step of a checkout's jaxpar and returns its seconds."""
    load = imported_from(root)
    layout = load("jaxpar.partition.layout").Layout.parse(text)
    placed = layout.on(jax.devices())
    model = load("jaxpar.models.sizes").llama(
        vocab_size=V, n_layers=4, d_embed=256, n_heads=8, n_kv_heads=8, d_mlp=768,
        max_positions=T, tied=True,
    )  # fmt: skip
    optim = load("jaxpar.optim.optimizer").AdamW(1e-3, warmup_steps=9, decay_steps=99)
    objective = load("jaxpar.train.objective").CausalLM()
    recipe = load("jaxpar.train.state").Recipe(model, objective, optim)
    state = load("jaxpar.train.state").create(recipe, placed, seed=0)
    step = load("jaxpar.train.step").make_train_step(recipe, placed, **options)
    tokens = np.random.default_rng(0).integers(0, V, (B, T + 1), dtype=np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        "segments": np.zeros((B, T), np.int32),
        "weights": np.ones((B, T), np.float32),
    }
    batch = jax.device_put(batch, placed.sharding(("batch", "seq")))

    def timed() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    timed()  # Compiles, while its own modules are those that Python knows.
    return timed


def compare(
    before: pathlib.Path, text: str, rounds: int, microbatches: int, exact: int
) -> float:
    """Prints medians of both; how many times the former's time a step takes now."""
    steps = {
        "before": stepper(before.resolve(), text, microbatches=microbatches),
        "here": stepper(
            HERE, text, microbatches=microbatches, **({"exact": exact} if exact else {})
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 2):
        # Every other round begins with the other one.
        for name in sorted(steps, reverse=bool(i % 2)):
            seconds = steps[name]()
            if i >= 2:
                times[name].append(seconds)
    for name, found in times.items():
        low, middle, high = min(found), statistics.median(found), max(found)
        print(f"{text:14} {name:7} {middle:.4f} s   ({low:.4f} to {high:.4f})")
    pairs = list(zip(times["here"], times["before"], strict=True))
    ratio = statistics.median(here / old for here, old in pairs)
    best = min(times["here"]) / min(times["before"])
    print(f"{text:14} here / before {ratio:.3f}, the median of {rounds} rounds; "
          f"{best:.3f} of the best steps")  # fmt: skip
    return ratio


def main() -> None:
    """Compares the steps of two checkouts on a layout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("before", type=pathlib.Path, help="the other checkout")
    parser.add_argument("layout")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--microbatches", type=int, default=1)
    parser.add_argument("--exact", type=int, default=0, help="parts, here alone")
    options = parser.parse_args()
    imported_from(HERE)
    layout = importlib.import_module("jaxpar.partition.layout").Layout
    n_devices = layout.parse(options.layout).n_devices
    jax.config.update("jax_num_cpu_devices", n_devices)
    compare(
        options.before,
        options.layout,
        options.rounds,
        options.microbatches,
        options.exact,
    )


if __name__ == "__main__":
    main()
