"""Several processes of one command, for tests; each is tests/one_process.py."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from jaxpar.metrics.metrics_file import read_metrics
from tests.flags import FAST

SCRIPT = str(Path(__file__).parent / "one_process.py")
TIMEOUT = 180  # Seconds; two cores may be busy.
ENDLESS = ("--num-steps=100000", "--save-every=100000", "--eval-every=100000")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def started(
    folder: Path, n: int, *words: str, extra=lambda i: (), env_of=lambda i: {}, **env
):
    """Starts n processes of one command.

    extra(i) and env_of(i): further words and variables for process i.
    """
    port, children = free_port(), []
    # No test here compares bits, so they compile fast.
    env = {"XLA_FLAGS": FAST, **env}
    env = {**os.environ, **env, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        for i in range(n):
            command = [
                sys.executable, SCRIPT, str(folder / f"rows{n}.{i}"), *words, *extra(i),
                "--coordinator", f"localhost:{port}",
                "--num-processes", str(n), "--process-id", str(i),
            ]  # fmt: skip
            with open(folder / f"out{n}.{i}", "w") as out:
                own = {**env, **env_of(i)}
                child = subprocess.Popen(command, stdout=out, stderr=out, env=own)
            children.append(child)
        yield children
    finally:
        for child in children:
            child.kill()
            child.wait()


def exit_statuses(children) -> list[int]:
    """Waits until all have ended, for at most TIMEOUT seconds."""
    deadline = time.monotonic() + TIMEOUT
    return [child.wait(max(deadline - time.monotonic(), 0)) for child in children]


def pretrain_with(n: int, folder: Path, run: Path, *words: str, **options) -> list[int]:
    """Trains a run with n processes; returns their exit statuses."""
    words = ("pretrain", SCRIPT, "--no-compile-cache", "--run-dir", str(run), *words)
    with started(folder, n, *words, **options) as children:
        return exit_statuses(children)


def output_of(folder: Path, n: int, i: int) -> str:
    """What process i of n has printed."""
    return (folder / f"out{n}.{i}").read_text()


def rows_in(path: Path) -> dict[int, dict[str, str]]:
    """Step to row to hash; checks that a process made only the rows that it fed."""
    rows = {}
    for line in map(json.loads, path.read_text().splitlines()):
        rows[line["step"]] = line["rows"]
        assert line["made"] == sorted(map(int, line["rows"]))
    return rows


def losses(run: Path) -> dict[int, float]:
    rows = read_metrics(run / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def wait_for_output(children, folder: Path, text: str) -> None:
    """Waits until process 0 of two has printed a text."""
    deadline = time.monotonic() + TIMEOUT
    while text not in output_of(folder, 2, 0):
        assert all(child.poll() is None for child in children)
        assert time.monotonic() < deadline, output_of(folder, 2, 0)
        time.sleep(0.05)


def wait_for_steps(children, folder: Path, run: Path) -> None:
    """Waits until some steps have been done."""
    deadline = time.monotonic() + TIMEOUT
    while not (run / "metrics.jsonl").exists() or len(losses(run)) < 4:
        assert all(child.poll() is None for child in children)
        assert time.monotonic() < deadline, output_of(folder, 2, 0)
        time.sleep(0.2)
