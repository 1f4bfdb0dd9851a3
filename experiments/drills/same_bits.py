"""Does a run with exact=8 have the same bits on any number of devices?

    python -m experiments.drills.same_bits            # all cases, about 20 minutes
    python -m experiments.drills.same_bits --cases 1  # the first of them

Each case is trained for 30 steps on real text on 8, 4, 2 and 1 devices, with replicas,
by 2 and 4 processes, and on 8, 2, 4 and 1 devices in turn, stopped and resumed between.
Printed is a hash of all parameters, the optimizer's state, and the losses, gradient
norms and evaluations of all steps. Expected: one hash in each case.
"""

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.drills.kills import rows_of

HERE = Path(__file__).parent
STEPS, EVAL_EVERY = 30, 10
TEXT = f"files:{HERE.parent}/**/*.py"


class Session(NamedTuple):
    """One start of the command."""

    layout: str
    n_processes: int = 1
    until: int = STEPS
    """The step at which it stops."""


RUNS: dict[str, tuple[Session, ...]] = {
    "8 devices": (Session("data=8"),),
    "4 devices": (Session("data=4"),),
    "2 devices": (Session("data=2"),),
    "1 device": (Session("data=1"),),
    "replica=2,data=4": (Session("replica=2,data=4"),),
    "8 -> 2 -> 4 -> 1": (
        Session("data=8", until=8), Session("data=2", until=15),
        Session("data=4", until=22), Session("data=1"),
    ),
    "2 processes": (Session("data=8", n_processes=2),),
    "4 processes": (Session("data=4", n_processes=4),),
}  # fmt: skip
BF16 = ("--precision.compute", "bfloat16")
CASES: dict[str, tuple[str, ...]] = {
    "float32, Muon, dropout": ("tiny_muon.py",),
    "bfloat16 throughout, AdamW, dropout": (
        "tiny.py", *BF16, "--precision.params", "bfloat16", "--model.dropout", "0.1",
    ),
    "bfloat16 products, Muon, dropout, remat": (
        "tiny_muon.py", *BF16, "--model.remat", "dots",
    ),
    "float32, AdamW, two microbatches": ("tiny.py", "--microbatches", "2"),
}  # fmt: skip


def main() -> int:
    """Prints a hash for each run of each case; 1 if those of a case differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=len(CASES))
    parser.add_argument("--runs", nargs="*", default=list(RUNS), choices=list(RUNS))
    asked = parser.parse_args()
    found = [
        case(name, words, asked.runs) for name, words in [*CASES.items()][: asked.cases]
    ]
    return 0 if all(found) else 1


def case(name: str, words: Sequence[str], runs: Sequence[str]) -> bool:
    """Whether these runs of one experiment have the same bits."""
    print(name, flush=True)
    folder, hashes = Path(tempfile.mkdtemp(prefix="jaxpar-bits-")), set()
    # Two microbatches on eight devices are sixteen parts.
    parts = "16" if "--microbatches" in words else "8"
    try:
        for run, sessions in RUNS.items():
            if run not in runs:
                continue
            directory = folder / run.replace(" ", "")
            for each in sessions:
                train(directory, [*words, "--exact", parts], each)
            bits = bits_of(directory)
            hashes.add(bits)
            print(f"  {run:20}{bits}", flush=True)
    finally:
        shutil.rmtree(folder)
    print(f"  {'one hash' if len(hashes) == 1 else 'DIFFERENT hashes'}", flush=True)
    return len(hashes) == 1


def train(directory: Path, words: Sequence[str], session: Session) -> None:
    """Runs the command in as many processes as the session has.

    Raises:
      SystemExit: it failed; with what it said.
    """
    command = [
        sys.executable, "-m", "jaxpar", "pretrain", str(HERE / words[0]), *words[1:],
        "--data.source", TEXT, "--data.batch-size", "16", "--layout", session.layout,
        "--num-steps", str(session.until), "--eval-every", str(EVAL_EVERY),
        "--run-dir", str(directory),
    ]  # fmt: skip
    if session.n_processes > 1:
        with socket.socket() as port:
            port.bind(("localhost", 0))
            address = f"localhost:{port.getsockname()[1]}"
        command += ["--coordinator", address]
        command += ["--num-processes", str(session.n_processes)]
    children = [
        subprocess.Popen(
            command + (["--process-id", str(i)] if session.n_processes > 1 else []),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            cwd=HERE.parents[1],
        )
        for i in range(session.n_processes)
    ]  # fmt: skip
    said = [child.communicate(timeout=600)[0] for child in children]
    if any(child.returncode for child in children):
        raise SystemExit(f"{session} failed:\n{said[0][-2000:]}")


def bits_of(directory: Path) -> str:
    """A hash of the newest state and of all rows, but for what depends on the clock."""
    script = f"import sys; from {__spec__.name} import state_of; state_of(sys.argv[1])"
    state = subprocess.run(
        [sys.executable, "-c", script, str(directory)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"}, check=True, stdout=subprocess.PIPE,
        cwd=HERE.parents[1],
    ).stdout  # fmt: skip
    # Each session ends with an evaluation, of which a run without stops has one.
    rows = [
        row
        for row in rows_of(directory)
        if not row["split"] or row["step"] % EVAL_EVERY == 0
    ]
    rows = json.dumps(rows).encode()
    return hashlib.sha256(state + rows).hexdigest()[:16]


def state_of(directory: str) -> None:
    """Writes all bytes of the newest state to standard output."""
    import jax
    import numpy as np

    from jaxpar.partition.layout import Layout
    from jaxpar.run.directory import RunDir

    run_dir = RunDir(directory)
    placed = Layout.parse("data=1").on(jax.devices()[:1])
    checkpoints = run_dir.checkpoints(read_only=True)
    state, _ = checkpoints.restore(
        checkpoints.newest(), run_dir.open().recipe().target(placed)
    )
    for leaf in jax.tree.leaves(state):
        sys.stdout.buffer.write(np.asarray(leaf).tobytes())


if __name__ == "__main__":
    sys.exit(main())
