"""How long does a save block the training loop, beside a plain copy of its bytes?

A state of 1 GB (parameters, two moments), in float32 on one device. In turn: a plain
copy of every array to the host's memory, and what `run/saving.py` does: it looks for
values that are not finite, then `Checkpoints.save` copies and begins to write. Each
save has ended before the next round begins.

"next step" is a step that donates its state, as training does, right after a save;
"step" is the same without a save. On a CPU Orbax copies nothing: it keeps the arrays,
so that this step cannot write in their place. "in all" counts that, too.

    python experiments/bench/saving.py [DIRECTORY]

The directory, a temporary one where none is given, needs 4 GB.
"""

import contextlib
import dataclasses
import functools
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.checkpoint import failed_saves
from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.train.nonfinite import make_finder
from jaxpar.train.state import NEVER, TrainState

LAYERS, WIDTH, WIDE = 8, 1024, 10_240
"""Three arrays for each layer: 83,886,080 parameters, 1.0 GB with their moments."""


def make_state(seed: int) -> TrainState:
    def tree(key):
        keys = iter(jax.random.split(key, 3 * LAYERS))
        shapes = {"w": (WIDTH, WIDE - 1024), "o": (WIDTH, 1023), "b": (WIDTH,)}
        return {
            f"layer_{i}": {
                name: jax.random.normal(next(keys), shape, jnp.float32)
                for name, shape in shapes.items()
            }
            for i in range(LAYERS)
        }

    params, mu, nu = map(tree, jax.random.split(jax.random.key(seed), 3))
    return TrainState(
        step=jnp.int32(0),
        params=params,
        opt_state={"mu": mu, "nu": nu},
        decay_from=jnp.int32(NEVER),
    )


def timed(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def plain_copy(state: TrainState) -> None:
    if jax.default_backend() == "cpu":
        copies = [np.array(leaf, copy=True) for leaf in jax.tree.leaves(state)]
    else:
        copies = jax.device_get(state)
    del copies


def fresh(state: TrainState, step: int) -> TrainState:
    """The same values in arrays of their own, which no copy is known of."""
    state = jax.tree.map(lambda leaf: leaf + 0, state)
    return jax.block_until_ready(dataclasses.replace(state, step=jnp.int32(step)))


@functools.partial(jax.jit, donate_argnums=0)
def one_step(state: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf * 1, state)


def measure(saver: Checkpoints, state: TrainState, step: int) -> dict[str, float]:
    """Seconds of each thing, once; the state stays as it is."""
    find = make_finder()
    find((state.params, state.opt_state))  # Compiles.
    copied, stepped, saved = (fresh(state, step) for _ in range(3))
    found = {"plain copy": timed(lambda: plain_copy(copied))}
    found["step"] = timed(lambda: jax.block_until_ready(one_step(stepped)))
    found["look"] = timed(lambda: find((saved.params, saved.opt_state)))
    found["save"] = timed(lambda: saver.save(step, saved, memory={}))
    found["look and save"] = found["look"] + found["save"]
    found["next step"] = timed(lambda: jax.block_until_ready(one_step(saved)))
    found["in all"] = found["look and save"] + found["next step"] - found["step"]
    found["until on disk"] = timed(saver.wait)
    return found


def main(directory: Path, rounds: int = 7) -> None:
    state = jax.block_until_ready(make_state(0))
    with contextlib.closing(Checkpoints(directory / "checkpoints", keep=1)) as saver:
        # The first round compiles.
        times = [measure(saver, state, step) for step in range(rounds + 1)][1:]
    for name in times[0]:
        each = [found[name] for found in times]
        low, middle, high = min(each), statistics.median(each), max(each)
        print(f"{name:14} {middle:.3f} s   ({low:.3f} to {high:.3f})")
    for name in ("save", "look and save", "in all"):
        ratios = [found[name] / found["plain copy"] for found in times]
        print(f"{name} / plain copy: {statistics.median(ratios):.2f} median of rounds")
    n_bytes, device = failed_saves.state_bytes(state), jax.devices()[0].device_kind
    print(f"{n_bytes / 1e9:.2f} GB on {device}, {rounds} rounds, jax {jax.__version__}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
