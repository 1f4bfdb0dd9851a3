"""What do the guards of a run cost, as a part of a training step?

The quickstart's model and layout on eight simulated devices, at the default cadence: a
comparison of replicas and a save every 500 steps. Each guard is timed alone, with and
without it in turn where it is part of every step, and divided by the step's time.

    python -m experiments.bench.guards
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from experiments.quickstart import experiment
from jaxpar.data.loader import batches
from jaxpar.guard import limits, manifest, replicas, watchdog
from jaxpar.guard.stopping import for_command
from jaxpar.run.directory import RunDir
from jaxpar.run.placing import place
from jaxpar.train import step as step_module
from jaxpar.train.loop import fit
from jaxpar.train.nonfinite import make_finder
from jaxpar.train.state import NEVER, TrainState, create
from jaxpar.train.step import make_train_step

ROUNDS, STEPS, EMPTY_STEPS = 7, 8, 20_000


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def median(work: Callable[[], Any], n: int = ROUNDS) -> float:
    """Of n calls, after one that compiles."""
    work()
    return statistics.median(timed(work) for _ in range(n))


def empty_loop(n_steps: int) -> None:
    """The loop around a step that does nothing, as a command runs it."""
    import jax.numpy as jnp

    state = TrainState(jnp.int32(1), {}, (), jnp.int32(NEVER))
    fit(state, itertools.count(), lambda s, b: (s, {}), num_steps=n_steps + 1)


def bare_loop(n_steps: int) -> None:
    """The same without phases, requests to stop and events."""
    state, history, feed = None, [], itertools.count()
    for _ in range(n_steps):
        next(feed)
        history.append((state, {}))


def loop_seconds() -> float:
    """What phases, the watchdog and requests to stop add to a step, at its most."""
    with for_command(leave=lambda status: None), watchdog.watching(limits.Limits()):
        pairs = [
            (
                timed(lambda: empty_loop(EMPTY_STEPS)),
                timed(lambda: bare_loop(EMPTY_STEPS)),
            )
            for _ in range(ROUNDS)
        ]
    return statistics.median(a - b for a, b in pairs) / EMPTY_STEPS


def finite_step_seconds(placed: Any) -> tuple[float, float]:
    """A step, and the same without the check that it is finite; in turn."""
    recipe, data = experiment.recipe(), experiment.data.prepare(None)
    checked = make_train_step(recipe, placed, seed=experiment.seed)
    found, keep = step_module.find_nonfinite, step_module.keep_where
    zero = jax.numpy.float32(0)
    feed = batches(
        data.train,
        experiment.objective.row,
        batch_size=experiment.data.batch_size,
        seed=0,
        placed=placed,
    )
    states = [create(recipe, placed, seed=0) for _ in range(2)]
    times: list[list[float]] = [[], []]
    unchecked = make_train_step(recipe, placed, seed=experiment.seed)
    for i in range(ROUNDS + 1):
        for which, step in enumerate((checked, unchecked)):
            if which == 1 and i == 0:
                step_module.find_nonfinite = lambda *a, **k: (zero, zero)
                step_module.keep_where = lambda skipped, old, new: new
            rows = [next(feed) for _ in range(STEPS)]
            began = time.perf_counter()
            for batch in rows:
                states[which], metrics = step(states[which], batch)
            jax.block_until_ready(metrics)
            if i:
                times[which].append((time.perf_counter() - began) / STEPS)
    step_module.find_nonfinite, step_module.keep_where = found, keep
    feed.close()
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Prints a line for each guard."""
    placed = place(experiment)
    step, unchecked = finite_step_seconds(placed)
    state = create(experiment.recipe(), placed, seed=0)
    every, saves = experiment.check_replicas, experiment.save_every
    finder = make_finder()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder, "run"))
        run.path.mkdir()
        checkpoints = run.checkpoints(read_only=False)
        checkpoints.save(1, state, memory={"rule": {}, "stopped": None, "step": 0})
        checkpoints.wait()
        saved = run.checkpoints_dir / "1"
        parts = {
            "loop: phases, watchdog, requests to stop": loop_seconds(),
            f"replicas, every {every} steps": median(
                lambda: replicas.find_differences(state)
            )
            / every,
            "values that are not finite, before a save": median(
                lambda: finder((state.params, state.opt_state))
            )
            / saves,
            "replicas, before a save": median(lambda: replicas.find_differences(state))
            / saves,
            "manifest of a save (beside the loop)": median(
                lambda: manifest.write(saved)
            )
            / saves,
        }
        checkpoints.close()
    print(f"a step: {step * 1e3:.1f} ms; not checked for finite values: "
          f"{unchecked * 1e3:.1f} ms ({step / unchecked - 1:+.2%})")  # fmt: skip
    for name, seconds in parts.items():
        print(f"{name}: {seconds * 1e6:.1f} us a step, {seconds / step:.4%}")
    print(f"together, without the finite check: {sum(parts.values()) / step:.3%}")


if __name__ == "__main__":
    main()
