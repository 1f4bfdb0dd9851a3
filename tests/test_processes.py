"""Many processes train one run: rows, losses, saves and ends of one process.

pytest -m "slow or not slow" tests/test_processes.py
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest
from one_process import experiment as RUN
from one_process import written

from jaxpar import pretrain
from jaxpar.data import loader
from jaxpar.errors import UserError
from jaxpar.partition import cluster, devices
from jaxpar.run import training
from jaxpar.run.directory import RunDir
from jaxpar.run.metrics_file import read_metrics
from tests.flags import FAST

CHILD = str(Path(__file__).parent / "one_process.py")
GIVE_UP = 180  # Seconds; two cores may be busy.
ENDLESS = ("--num-steps=100000", "--save-every=100000", "--eval-every=100000")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def started(folder: Path, n: int, *words: str, own=lambda i: (), **env: str):
    """n processes of one command; own(i): what only process i is given."""
    port, children = free_port(), []
    # No law on equal bits here, so they compile fast.
    env = {"XLA_FLAGS": FAST, **env}
    env = {**os.environ, **env, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        for i in range(n):
            command = [
                sys.executable, CHILD, str(folder / f"fed{n}.{i}"), *words, *own(i),
                "--coordinator", f"localhost:{port}",
                "--num-processes", str(n), "--process-id", str(i),
            ]  # fmt: skip
            with open(folder / f"out{n}.{i}", "w") as out:
                children.append(
                    subprocess.Popen(
                        command, stdout=out, stderr=subprocess.STDOUT, env=env
                    )
                )
        yield children
    finally:
        for child in children:
            child.kill()
            child.wait()


def ended(children) -> list[int]:
    """The exit statuses of all, which must come within GIVE_UP seconds."""
    until = time.monotonic() + GIVE_UP
    return [child.wait(max(until - time.monotonic(), 0)) for child in children]


def pretrained(folder: Path, home: Path, n: int, *words: str, **how) -> list[int]:
    words = ("pretrain", CHILD, "--no-compile-cache", "--run-dir", str(home), *words)
    with started(folder, n, *words, **how) as children:
        return ended(children)


def words_of(folder: Path, n: int, i: int) -> str:
    return (folder / f"out{n}.{i}").read_text()


def fed(path: Path) -> dict[int, dict[str, str]]:
    """Step to row to hash; every row that was made was also fed."""
    found = {}
    for line in map(json.loads, path.read_text().splitlines()):
        found[line["step"]] = line["rows"]
        assert line["made"] == sorted(map(int, line["rows"]))
    return found


def losses(home: Path) -> dict[int, float]:
    rows = read_metrics(home / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def scores(home: Path) -> dict[int, float]:
    rows = read_metrics(home / "metrics.jsonl")
    return {row["step"]: row["nats_per_token"] for row in rows if "split" in row}


def alone(home: Path, path: Path) -> int:
    """Trains in this process, which has eight devices."""
    with pytest.MonkeyPatch.context() as patch:
        feed, row = written(path, loader.batches, loader._row)
        patch.setattr(training, "batches", feed)
        patch.setattr(loader, "_row", row)
        return pretrain.main(RUN, run_dir=home)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One process of eight devices that never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert alone(folder / "run", folder / "fed") == 0
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """Two processes of four devices, as far as the middle."""
    folder = tmp_path_factory.mktemp("half")
    assert pretrained(folder, folder / "run", 2, "--num-steps=3") == [0, 0]
    return folder


def same_run(home: Path, whole: Path) -> None:
    """As the whole run, but for the order in which float32 was added up."""
    assert losses(home) == pytest.approx(losses(whole / "run"), rel=1e-5)
    assert scores(home) == pytest.approx(scores(whole / "run"), rel=1e-5)


def test_two_processes_are_resumed_as_one_with_its_rows_and_losses(
    whole, half, tmp_path
):
    rows = fed(whole / "fed")
    first, second = fed(half / "fed2.0"), fed(half / "fed2.1")
    assert list(first) == list(second) == [0, 1, 2]
    for step in first:
        assert list(map(int, first[step])) == list(range(8))
        assert {**first[step], **second[step]} == rows[step]
    shutil.copytree(half / "run", tmp_path / "run")
    assert alone(tmp_path / "run", tmp_path / "fed") == 0
    later = fed(tmp_path / "fed")
    assert list(later) == [3, 4, 5]
    assert all(later[step] == rows[step] for step in later)
    same_run(tmp_path / "run", whole)


def test_process_0_alone_writes_and_prints(half):
    assert "Next:" in words_of(half, 2, 0) and "step 2/3" in words_of(half, 2, 0)
    said = [x for x in words_of(half, 2, 1).splitlines() if "[Gloo]" not in x]
    assert said == []
    lines = (half / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3, 3]
    (receipt,) = json.loads((half / "run" / "receipt.json").read_text())["sessions"]
    assert (receipt["n_processes"], receipt["n_devices"]) == (2, 8)
    assert len(list((half / "run" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_two_processes_are_resumed_as_four(whole, half, tmp_path):
    shutil.copytree(half / "run", tmp_path / "run")
    assert pretrained(tmp_path, tmp_path / "run", 4) == [0] * 4
    rows, found = fed(whole / "fed"), [fed(tmp_path / f"fed4.{i}") for i in range(4)]
    for step in (3, 4, 5):
        parts = [part[step] for part in found]
        assert parts[0] == parts[1] and parts[2] == parts[3]
        assert {**parts[0], **parts[2]} == rows[step]
    same_run(tmp_path / "run", whole)


def begun(children, folder: Path, home: Path) -> None:
    """Waits until some steps have been done."""
    until = time.monotonic() + GIVE_UP
    while not (home / "metrics.jsonl").exists() or len(losses(home)) < 4:
        assert all(child.poll() is None for child in children)
        assert time.monotonic() < until, words_of(folder, 2, 0)
        time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_at_the_same_saved_step(tmp_path, kind):
    home, words = tmp_path / "run", ("pretrain", CHILD, "--no-compile-cache", *ENDLESS)
    with started(tmp_path, 2, *words, "--run-dir", str(home)) as children:
        begun(children, tmp_path, home)
        children[1].send_signal(kind)
        assert ended(children) == [75, 75]
    assert "stopped on request" in words_of(tmp_path, 2, 0)
    step = max(losses(home))
    assert RunDir(home).checkpoints().steps() == [step]
    for i in range(2):
        assert step - 1 in fed(tmp_path / f"fed2.{i}")
        assert step not in fed(tmp_path / f"fed2.{i}")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(tmp_path, victim):
    home, words = tmp_path / "run", ("pretrain", CHILD, "--no-compile-cache", *ENDLESS)
    words = (*words, "--run-dir", str(home))
    with started(tmp_path, 2, *words, LEAVE_SECONDS="5") as children:
        begun(children, tmp_path, home)
        children[victim].kill()
        status = ended(children)[1 - victim]
    # Who sees it first: Gloo raises its error, in one line; JAX's coordination aborts.
    assert status in (1, -signal.SIGABRT)
    assert words_of(tmp_path, 2, 1 - victim)


@pytest.mark.slow
def test_processes_of_other_experiments_or_a_used_directory_are_refused_in_all(
    half, tmp_path
):
    def seeded(i):
        return ("--seed", str(i))

    assert pretrained(tmp_path, tmp_path / "run", 2, own=seeded) == [2, 2]
    assert "Process 1: Another experiment" in words_of(tmp_path, 2, 0)
    assert not (tmp_path / "run").exists()
    other = ("--seed", "5")
    assert pretrained(tmp_path, half / "run", 2, *other) == [2, 2]
    for i in range(2):
        assert "is the run of another experiment: seed" in words_of(tmp_path, 2, i)


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does(half, tmp_path):
    run = str(half / "run")
    with started(tmp_path, 2, "evaluate", run, "--json") as children:
        assert ended(children) == [0, 0]
    # Gloo writes its own lines, and not always whole ones.
    said = words_of(tmp_path, 2, 0)
    found = json.loads(said[said.index("{") :].splitlines()[0])
    assert found["nats_per_token"] == pytest.approx(scores(half / "run")[3], rel=1e-5)
    assert "{" not in words_of(tmp_path, 2, 1)


@pytest.fixture
def no_cluster(monkeypatch):
    """An environment that says nothing of other processes."""
    for name in tuple(os.environ):
        if name.startswith(("JAX_COORD", "JAX_NUM_PROC", "JAX_PROC", "SLURM", "OMPI")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("here:1", None, 0), "missing: --num-processes"),
        ((None, 2, None), "missing: --coordinator, --process-id"),
        (("here:1", 2, 2), "--process-id 2 is out of range; it runs from 0 to 1"),
        (("here", 2, 0), "must be HOST:PORT"),
        (("here:1", 0, 0), "--num-processes 0 must be 1 or more"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused(no_cluster, given, words):
    with pytest.raises(UserError, match=words):
        cluster.start(*given)


def test_jaxs_variables_stand_for_flags(no_cluster):
    no_cluster.setenv("JAX_COORDINATOR_ADDRESS", "here:1")
    no_cluster.setenv("JAX_NUM_PROCESSES", "3")
    with pytest.raises(UserError, match="process-id 3 is out of range"):
        cluster.start(process_id=3)
    no_cluster.setenv("JAX_PROCESS_ID", "one")
    with pytest.raises(UserError, match="JAX_PROCESS_ID=one is no number"):
        cluster.start()


def test_slurm_is_left_to_jax_and_a_task_alone_is_no_cluster(no_cluster):
    asked = []
    no_cluster.setattr(jax.distributed, "initialize", lambda **how: asked.append(how))
    for name in ("JOB_ID", "STEP_NODELIST", "PROCID", "LOCALID"):
        no_cluster.setenv(f"SLURM_{name}", "0")
    no_cluster.setenv("SLURM_NTASKS", "1")
    cluster.start()
    assert not asked
    no_cluster.setenv("SLURM_NTASKS", "2")
    cluster.start()
    (how,) = asked
    assert how["coordinator_address"] is how["cluster_detection_method"] is None
    with pytest.raises(UserError, match="runs in one process, and Slurm says"):
        cluster.require_single_process("jaxpar generate", "-")


def test_simulated_devices_are_shared_out_evenly_or_refused(no_cluster):
    no_cluster.setattr(cluster, "count", lambda: 3)
    with pytest.raises(ValueError, match="among 3 processes; they can be 6 and 9"):
        devices.simulate_devices(8)
    with pytest.raises(ValueError, match="among 3 processes; they can be 3"):
        devices.simulate_devices(2)


def test_one_process_agrees_with_itself():
    assert cluster.broadcast(1.5) == 1.5 and cluster.first_then_others(lambda: 3) == 3
    with pytest.raises(KeyError), cluster.synchronized():
        raise KeyError("x")
