"""Several processes train a run as one process does: rows, losses, saves, exits.

pytest -m "slow or not slow" tests/test_processes.py
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import jax
import pytest
from one_process import experiment as RUN
from one_process import logged

from jaxpar import pretrain
from jaxpar.checkpoint.verified import Check
from jaxpar.data import loader
from jaxpar.data.same_data import prepare_together
from jaxpar.errors import UserError
from jaxpar.metrics.metrics_file import read_metrics
from jaxpar.partition import cluster, devices
from jaxpar.partition.layout import Layout
from jaxpar.run import fitting
from jaxpar.run.directory import RunDir
from tests.processes import (
    SCRIPT,
    exit_statuses,
    losses,
    output_of,
    pretrain_with,
    rows_in,
    started,
    wait_for_steps,
)


def scores(run: Path) -> dict[int, float]:
    rows = read_metrics(run / "metrics.jsonl")
    return {row["step"]: row["nats_per_token"] for row in rows if "split" in row}


def pretrain_here(run: Path, rows: Path) -> int:
    """Trains in this process, which has eight devices; logs the rows to a file."""
    with pytest.MonkeyPatch.context() as patch:
        batches, row = logged(rows, loader.batches, loader._row)
        patch.setattr(fitting, "batches", batches)
        patch.setattr(loader, "_row", row)
        return pretrain.main(RUN, run_dir=run)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of one process with eight devices that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert pretrain_here(folder / "run", folder / "rows") == 0
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The first half of a run, of two processes with four devices each."""
    folder = tmp_path_factory.mktemp("half")
    assert pretrain_with(2, folder, folder / "run", "--num-steps=3") == [0, 0]
    return folder


def assert_same_run(run: Path, whole: Path) -> None:
    """The losses are those of the whole run, up to the order of float32 sums."""
    assert losses(run) == pytest.approx(losses(whole / "run"), rel=1e-5)
    assert scores(run) == pytest.approx(scores(whole / "run"), rel=1e-5)


@pytest.mark.slow
def test_two_processes_are_resumed_as_one_with_its_rows_and_losses(
    whole, half, tmp_path
):
    rows = rows_in(whole / "rows")
    first, second = rows_in(half / "rows2.0"), rows_in(half / "rows2.1")
    assert list(first) == list(second) == [0, 1, 2]
    for step in first:
        assert list(map(int, first[step])) == list(range(8))
        assert {**first[step], **second[step]} == rows[step]
    shutil.copytree(half / "run", tmp_path / "run")
    assert pretrain_here(tmp_path / "run", tmp_path / "rows") == 0
    later = rows_in(tmp_path / "rows")
    assert list(later) == [3, 4, 5]
    assert all(later[step] == rows[step] for step in later)
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_only_process_0_writes_and_prints(half):
    assert "Next:" in output_of(half, 2, 0) and "step 2/3" in output_of(half, 2, 0)
    # Gloo writes its own lines, and under load not always whole ones.
    assert not re.search(r"step|loss|compiling|Next|runs/", output_of(half, 2, 1))
    lines = (half / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3, 3]
    (receipt,) = json.loads((half / "run" / "receipt.json").read_text())["sessions"]
    assert (receipt["n_processes"], receipt["n_devices"]) == (2, 8)
    assert len(list((half / "run" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_two_processes_write_one_manifest(half):
    assert RunDir(half / "run").check(Check(strict=True)) == ([3], {})


@pytest.mark.slow
def test_a_block_that_one_process_finds_damaged_is_refused_by_all(half, tmp_path):
    run = shutil.copytree(half / "run", tmp_path / "run")
    step = run / "checkpoints" / "3"
    for name in ("params/_METADATA", "rest/_METADATA"):  # At least one for each.
        text = (step / name).read_text()
        (step / name).write_text(text.replace("a", "b", 1))
    assert pretrain_with(2, tmp_path, run, "--strict") == [4, 4]
    said = output_of(tmp_path, 2, 0)
    assert "params/_METADATA: content changed; rest/_METADATA: content" in said


@pytest.mark.slow
def test_two_processes_go_back_together(half, tmp_path):
    run = shutil.copytree(half / "run", tmp_path / "run")
    assert pretrain_with(2, tmp_path, run, "--num-steps=5") == [0, 0]
    (run / "checkpoints" / "5" / "params" / "_METADATA").write_text("")
    assert pretrain_with(2, tmp_path, run, "--num-steps=6") == [0, 0]
    assert "Resuming" in output_of(tmp_path, 2, 0)
    assert (run / "checkpoints" / "damaged-5").is_dir()
    assert RunDir(run).check(Check(strict=True))[1] == {}
    for i, n_lines in enumerate((1, 0)):
        assert output_of(tmp_path, 2, i).count("going back to step 3") == n_lines


@pytest.mark.slow
def test_two_processes_are_resumed_as_four(whole, half, tmp_path):
    shutil.copytree(half / "run", tmp_path / "run")
    assert pretrain_with(4, tmp_path, tmp_path / "run") == [0] * 4
    rows = rows_in(whole / "rows")
    by_process = [rows_in(tmp_path / f"rows4.{i}") for i in range(4)]
    for step in (3, 4, 5):
        parts = [part[step] for part in by_process]
        assert parts[0] == parts[1] and parts[2] == parts[3]
        assert {**parts[0], **parts[2]} == rows[step]
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_processes_of_other_experiments_or_a_used_directory_are_refused_in_all(
    half, tmp_path
):
    def seeded(i):
        return ("--seed", str(i))

    assert pretrain_with(2, tmp_path, tmp_path / "run", extra=seeded) == [2, 2]
    assert "Process 1: The experiment here" in output_of(tmp_path, 2, 0)
    assert not (tmp_path / "run").exists()
    assert pretrain_with(2, tmp_path, half / "run", "--seed=5") == [2, 2]
    for i in range(2):
        assert "is the run of another experiment: seed" in output_of(tmp_path, 2, i)


@pytest.mark.slow
def test_two_processes_evaluate_what_one_does(half, tmp_path):
    run = str(half / "run")
    with started(tmp_path, 2, "evaluate", run, "--json") as children:
        assert exit_statuses(children) == [0, 0]
    # Gloo prints lines of its own, and not always whole ones.
    output = output_of(tmp_path, 2, 0)
    scored = json.loads(output[output.index("{") :].splitlines()[0])
    assert scored["nats_per_token"] == pytest.approx(scores(half / "run")[3], rel=1e-5)
    assert "{" not in output_of(tmp_path, 2, 1)


@pytest.fixture
def corpus(tmp_path):
    """The words that name files of text as data, and a cache of one's own for them."""
    for i in range(30):
        lines = (f"file {i}, line {n} of it\n" for n in range(200))
        (tmp_path / f"{i}.txt").write_text("".join(lines))
    return (f"--data.source=files:{tmp_path}/*.txt", "--num-steps=1")


def writings(folder: Path) -> list[int]:
    """How often each of two processes has said that it tokenises."""
    return [output_of(folder, 2, i).count("writing the text down") for i in range(2)]


@pytest.mark.slow
def test_of_two_processes_on_one_host_one_tokenises(tmp_path, corpus):
    def run(name):
        env = {"JAXPAR_CACHE": str(tmp_path / "cache")}
        assert pretrain_with(2, tmp_path, tmp_path / name, *corpus, **env) == [0, 0]

    run("first")
    assert writings(tmp_path) == [1, 0]
    (made,) = (tmp_path / "cache" / "windows").iterdir()
    before = [path.stat().st_mtime_ns for path in sorted(made.rglob("*"))]
    run("second")
    assert writings(tmp_path) == [0, 0]
    assert before == [path.stat().st_mtime_ns for path in sorted(made.rglob("*"))]


@pytest.mark.slow
def test_hosts_with_caches_of_their_own_tokenise_once_each(tmp_path, corpus):
    def alone(i):
        return {"JAXPAR_CACHE": str(tmp_path / f"cache {i}")}

    run = tmp_path / "run"
    assert pretrain_with(2, tmp_path, run, *corpus, env_of=alone) == [0, 0]
    assert writings(tmp_path) == [1, 1]
    made = [[*(tmp_path / f"cache {i}" / "windows").iterdir()] for i in range(2)]
    assert [path.name for path in made[0]] == [path.name for path in made[1]]


@pytest.fixture
def no_cluster(monkeypatch):
    """An environment without variables of a launcher."""
    for name in tuple(os.environ):
        if name.startswith(("JAX_COORD", "JAX_NUM_PROC", "JAX_PROC", "SLURM", "OMPI")):
            monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("here:1", None, 0), "missing: --num-processes"),
        ((None, 2, None), "missing: --coordinator, --process-id"),
        (("here:1", 2, 2), "--process-id 2 is out of range; it runs from 0 to 1"),
        (("here", 2, 0), "must be HOST:PORT"),
        (("here:1", 0, 0), "--num-processes 0 must be 1 or more"),
    ],
)
def test_contradictory_flags_are_refused(no_cluster, arguments, message):
    with pytest.raises(UserError, match=message):
        cluster.start(*arguments)


def test_jaxs_variables_stand_for_flags(no_cluster):
    no_cluster.setenv("JAX_COORDINATOR_ADDRESS", "here:1")
    no_cluster.setenv("JAX_NUM_PROCESSES", "3")
    with pytest.raises(UserError, match="process-id 3 is out of range"):
        cluster.start(process_id=3)
    no_cluster.setenv("JAX_PROCESS_ID", "one")
    with pytest.raises(UserError, match="JAX_PROCESS_ID=one is not a whole number"):
        cluster.start()


def test_slurm_is_left_to_jax_and_a_single_task_is_no_cluster(no_cluster):
    calls = []
    no_cluster.setattr(jax.distributed, "initialize", lambda **opts: calls.append(opts))
    for name in ("JOB_ID", "STEP_NODELIST", "PROCID", "LOCALID"):
        no_cluster.setenv(f"SLURM_{name}", "0")
    no_cluster.setenv("SLURM_NTASKS", "1")
    cluster.start()
    assert not calls
    no_cluster.setenv("SLURM_NTASKS", "2")
    cluster.start()
    (options,) = calls
    assert options["coordinator_address"] is options["cluster_detection_method"] is None
    with pytest.raises(UserError, match="runs in one process, and Slurm says"):
        cluster.require_single_process("jaxpar generate", "-")


def test_simulated_devices_are_divided_evenly_or_refused(no_cluster):
    no_cluster.setattr(cluster, "count", lambda: 3)
    with pytest.raises(ValueError, match="among 3 processes; they can be 6 and 9"):
        devices.simulate_devices(8)
    with pytest.raises(ValueError, match="among 3 processes; they can be 3"):
        devices.simulate_devices(2)


def test_one_process_agrees_with_itself():
    assert cluster.broadcast(1.5) == 1.5 and prepare_together(lambda: 3) == 3
    with pytest.raises(KeyError), cluster.synchronized():
        raise KeyError("x")


@pytest.mark.slow
@pytest.mark.parametrize(
    "processes, layout, gathers",
    [
        (2, "stage=2,data=4", "microbatch"),
        (2, "stage=2x2,data=4", "microbatch"),
        (4, "stage=2x2,fsdp=4", "round"),
    ],
)
def test_a_pipeline_over_processes_is_resumed_by_one(
    processes, layout, gathers, tmp_path
):
    """Each process has a stage, or half of one; the devices of one go on with all."""
    n = 2 * Layout.parse(layout).n_rounds
    model = dataclasses.replace(RUN.model, n_layers=n)
    words = f"--model.n-layers={n}", f"--layout={layout}", f"--fsdp-gathers={gathers}"
    parted, ends = tmp_path / "parted", [0] * processes
    assert pretrain_with(processes, tmp_path, parted, *words, "--num-steps=3") == ends
    run = dataclasses.replace(
        RUN, model=model, layout=Layout.parse(layout), fsdp_gathers=gathers
    )
    for folder in (parted, tmp_path / "run"):
        assert pretrain.main(run, run_dir=folder) == 0
    assert_same_run(parted, tmp_path)


@pytest.mark.slow
def test_a_pipeline_over_two_processes_is_killed_and_goes_on(tmp_path):
    """Neither process can say goodbye; the resumed run repeats what was not saved."""
    words = "--layout=stage=2,data=4", "--model.n-layers=2", "--log-every=1"
    killed, whole = tmp_path / "killed", tmp_path / "whole" / "run"
    often = ("--num-steps=100000", "--save-every=2", "--eval-every=100000")
    command = ("pretrain", SCRIPT, "--no-compile-cache", "--run-dir", str(killed))
    with started(tmp_path, 2, *command, *words, *often) as children:
        wait_for_steps(children, tmp_path, killed)
        for child in children:
            child.kill()
    with contextlib.closing(RunDir(killed).checkpoints()) as saved:
        n = saved.steps()[-1] + 3
    for folder in (killed, whole):
        folder.parent.mkdir(exist_ok=True)
        ends = (f"--num-steps={n}", "--save-every=2", "--eval-every=100000")
        assert pretrain_with(2, tmp_path, folder, *words, *ends) == [0, 0]
    assert losses(killed) == losses(whole)
    assert set(losses(killed)) == set(range(1, n + 1))
