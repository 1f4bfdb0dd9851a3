"""Does a run that is killed 50 times end as the run that was never stopped?

    python -m experiments.drills.kills              # 50 kills, about 10 minutes

The run saves every 5 steps. Each session is ended by kill -9 at a moment that is drawn
by progress: after a number of steps, inside a save, or inside the deletion of an old
step (an audit hook in the process counts the file operations there, and kills at one
of them). Some sessions have two processes, of which one or both are killed. The same
command is then started again. Expected: it goes on by itself each time, and the losses,
evaluations and parameters of the end are, bit for bit, those of an undisturbed run.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from jaxpar.metrics.metrics_file import read_metrics

EXPERIMENT = Path(__file__).with_name("tiny.py")
STEPS_APART = 8
"""A kill after a number of steps comes within so many."""
MOST_STEPS = 16
"""A session whose save or deletion has fewer file operations is killed after these."""


class Kill(NamedTuple):
    """A moment at which processes are killed."""

    where: str
    """step, save or delete."""
    count: int
    """Steps done in this session, or file operations inside a save or deletion."""
    victims: tuple[int, ...] = (0,)


def main() -> int:
    """Prints each kill and what was on the disk, then what differs in the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alone", type=int, default=42, help="kills of one process")
    parser.add_argument("--pairs", type=int, default=8, help="kills of two processes")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="jaxpar-drill-"))
    os.environ["JAXPAR_CACHE"] = str(folder / "cache")
    drawn = random.Random(asked.seed)
    good = drill(folder / "alone", 1, kills_of_one(asked.alone, drawn))
    good &= drill(folder / "pairs", 2, kills_of_two(asked.pairs, drawn))
    shutil.rmtree(folder)
    return 0 if good else 1


def kills_of_one(n: int, drawn: random.Random) -> list[Kill]:
    """A third of them inside a save, a third inside a deletion."""
    # A save makes some 40 file operations that Python sees, a deletion some 20.
    most = {"step": STEPS_APART, "save": 40, "delete": 20}
    wheres = [tuple(most)[i % 3] for i in range(n)]
    return [Kill(where, drawn.randint(1, most[where])) for where in wheres]


def kills_of_two(n: int, drawn: random.Random) -> list[Kill]:
    """Of process 0, process 1, or both, in turn."""
    victims = ((0, 1), (1,), (0,))
    return [
        Kill(
            ("step", "save")[i % 2],
            drawn.randint(1, STEPS_APART),
            victims[i % len(victims)],
        )
        for i in range(n)
    ]


def drill(folder: Path, n_processes: int, kills: list[Kill]) -> bool:
    """Whether a run that is killed at these moments ends as one that is not."""
    n_steps = (len(kills) + 2) * MOST_STEPS
    whole, killed = folder / "whole", folder / "killed"
    folder.mkdir()
    if session(whole, n_processes, n_steps) != [0] * n_processes:
        print("the undisturbed run failed")
        return False
    hits: dict[str, int] = {}
    for i, kill in enumerate(kills):
        statuses = session(killed, n_processes, n_steps, kill)
        found = what_is_left(killed)
        hits[found] = hits.get(found, 0) + 1
        print(f"{i + 1:3} {kill}: statuses {statuses}, left {found}", flush=True)
        if any(status not in (0, -signal.SIGKILL, -6, 1) for status in statuses):
            return False
    while session(killed, n_processes, n_steps) != [0] * n_processes:
        print("the last session failed")
        return False
    differs = what_differs(killed, whole)
    good = not differs
    said = "bit-equal to" if good else "DIFFERENT from"
    print(
        f"{n_processes} process(es), {n_steps} steps, {len(kills)} kills {hits}: "
        f"losses, evaluations and the state are {said} the undisturbed run {differs}"
    )
    return good


def session(
    run: Path, n_processes: int, n_steps: int, kill: Kill | None = None
) -> list[int]:
    """Runs the command until it ends or is killed; the exit statuses."""
    words = [
        "pretrain", str(EXPERIMENT), "--run-dir", str(run),
        "--num-steps", str(n_steps), "--eval-every", "20",
    ]  # fmt: skip
    if n_processes > 1:
        with socket.socket() as port:
            port.bind(("localhost", 0))
            address = f"localhost:{port.getsockname()[1]}"
        words += ["--coordinator", address, "--num-processes", str(n_processes)]
    children = []
    for i in range(n_processes):
        own = [*words, *(["--process-id", str(i)] if n_processes > 1 else [])]
        moment = kill if kill and i in kill.victims else None
        command = [sys.executable, __file__, "child", json.dumps(moment), *own]
        with open(run.with_suffix(f".{i}.out"), "w") as out:
            children.append(subprocess.Popen(command, stdout=out, stderr=out))
    return [child.wait(300) for child in children]


def what_is_left(run: Path) -> str:
    """What a kill has left in the checkpoints: a save or a deletion half done, or
    whole steps only."""
    folders = list((run / "checkpoints").glob("*"))
    if any("tmp" in folder.name for folder in folders):
        return "half a save"
    steps = [folder for folder in folders if folder.name.isdigit()]
    if any(not (step / "_CHECKPOINT_METADATA").exists() for step in steps):
        return "half a deletion"
    return "whole steps"


def what_differs(run: Path, other: Path) -> str:
    """The first row, or the leaves of the state, that are not bit-equal; or nothing."""
    ours, theirs = rows_of(run), rows_of(other)
    if ours != theirs:
        pairs = itertools.zip_longest(ours, theirs)
        return f"(rows {next((a, b) for a, b in pairs if a != b)})"
    mine, yours = parameters_of(run), parameters_of(other)
    leaves = [path for path in mine if mine[path] != yours.get(path)]
    return f"(leaves {leaves})" if leaves else ""


def rows_of(run: Path) -> list[dict]:
    """All rows, without what depends on the clock."""
    kept = ("step", "split", "loss", "grad_norm", "learning_rate", "tokens", "skipped",
            "nats_per_token", "nats_per_byte")  # fmt: skip
    rows = read_metrics(run / "metrics.jsonl")
    return [{name: row.get(name) for name in kept} for row in rows]


def parameters_of(run: Path) -> dict[str, bytes]:
    """The newest step's arrays, as bytes by path."""
    import jax
    import numpy as np

    from jaxpar.run.directory import RunDir
    from jaxpar.tree import path_of

    run_dir = RunDir(run)
    with contextlib.suppress(RuntimeError):  # A backend runs, with enough of them.
        jax.config.update("jax_num_cpu_devices", 2)
    experiment = run_dir.open()
    placed = experiment.layout.on(jax.devices()[: experiment.layout.n_devices])
    checkpoints = run_dir.checkpoints(read_only=True)
    state, _ = checkpoints.restore(
        checkpoints.newest(), experiment.recipe().target(placed)
    )
    return {
        path_of(keys): np.asarray(leaf).tobytes()
        for keys, leaf in jax.tree_util.tree_leaves_with_path(
            (state.params, state.opt_state)
        )
    }


def child(moment: str, words: list[str]) -> int:
    """The command, with a hook that kills this process at a moment."""
    if found := json.loads(moment):
        Killer(Kill(*found)).install()
    from jaxpar.cli import main
    from jaxpar.partition import cluster

    cluster.HEARTBEAT_SECONDS = 10  # So that a process without the other ends sooner.
    return main(words)


class Killer:
    """Kills this process at a moment that it counts itself."""

    def __init__(self, kill: Kill):
        self._kill, self._count, self._deleting = kill, 0, False

    def install(self) -> None:
        """Begins to count."""
        from jaxpar.train.loop import History

        keep, steps = History.keep, itertools.count(1)
        last = self._kill.count if self._kill.where == "step" else MOST_STEPS

        def counted(history, step, metrics):
            keep(history, step, metrics)
            if next(steps) >= last:
                self._kill_now()

        History.keep = counted
        if self._kill.where != "step":
            sys.addaudithook(self._seen)

    def _seen(self, event: str, args: tuple) -> None:
        if self._counts(event, args):
            self._count += 1
            if self._count >= self._kill.count:
                self._kill_now()

    def _kill_now(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10)

    def _counts(self, event: str, args: tuple) -> bool:
        if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir",
                         "shutil.rmtree", "os.listdir", "os.scandir"):  # fmt: skip
            return False
        path = Path(str(args[0]))
        if self._kill.where == "save":
            return "orbax-checkpoint-tmp" in str(path)
        if event == "shutil.rmtree":
            self._deleting = path.parent.name == "checkpoints" and path.name.isdigit()
        return self._deleting and event in ("os.remove", "os.rmdir")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        sys.exit(child(sys.argv[2], sys.argv[3:]))
    sys.exit(main())
