"""A run whose disk is full loses no step that could be saved, and says what to do.

pytest -m "slow or not slow" tests/run/test_run_on_full_disk.py
"""

import dataclasses
import errno
import os
import subprocess
import sys

import pytest

from jaxpar import pretrain
from jaxpar.errors import JaxparError
from jaxpar.metrics import sinks
from jaxpar.metrics.metrics_file import read_metrics
from jaxpar.run.directory import RunDir
from tests.flags import FAST
from tests.run.test_resumed_metrics import RUN
from tests.small_disks import FAILED_SAVES, small_disk

pytestmark = FAILED_SAVES
SHORT = dataclasses.replace(RUN, num_steps=6, save_every=50, log_every=2)
EXPERIMENT = """
import dataclasses
from tests.run.test_resumed_metrics import RUN
from jaxpar.models import sizes
from jaxpar.partition.layout import Layout

# A checkpoint takes 1.4 MB.
experiment = dataclasses.replace(
    RUN,
    layout=Layout.parse("data=1"),
    num_steps=8,
    save_every=1,
    keep=4,
    model=sizes.llama(
        vocab_size=260, n_layers=2, d_embed=64, n_heads=2, n_kv_heads=2, d_mlp=128,
        max_positions=32,
    ),
)
"""


def losses(home):
    rows = read_metrics(home / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The losses of a run that was never stopped."""
    home = tmp_path_factory.mktemp("runs") / "whole"
    assert pretrain.main(SHORT, run_dir=home) == 0
    return losses(home)


def fail_from(monkeypatch, kind, first):
    """Lets a kind of sink fail from a step on."""
    real = kind.write

    def write(self, row):
        if row["step"] >= first:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, row)

    monkeypatch.setattr(kind, "write", write)


def test_a_run_that_cannot_write_its_metrics_is_saved_and_goes_on(
    tmp_path, whole, monkeypatch
):
    home = tmp_path / "run"
    with monkeypatch.context() as patch:
        fail_from(patch, sinks.JsonlSink, 3)
        with pytest.raises(JaxparError, match="from step 3 on are missing"):
            pretrain.main(SHORT, run_dir=home)
    assert RunDir(home).checkpoints().steps() == [4]
    assert pretrain.main(SHORT, run_dir=home) == 0
    assert losses(home) == {step: whole[step] for step in (1, 2, 5, 6)}


@pytest.mark.parametrize("kind", [sinks.TensorBoardSink, sinks.Progress])
def test_a_run_goes_on_without_a_sink_that_fails(
    tmp_path, whole, monkeypatch, capsys, kind
):
    fail_from(monkeypatch, kind, 2)
    assert pretrain.main(SHORT, run_dir=tmp_path / "run") == 0
    assert losses(tmp_path / "run") == whole
    assert capsys.readouterr().err.count("is off from now on (OSError") == 1


def command(folder, home, *words):
    words = ("pretrain", str(folder / "experiment.py"), "--run-dir", str(home), *words)
    env = {**os.environ, "XLA_FLAGS": FAST, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-m", "jaxpar", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
    )


@pytest.mark.slow
def test_the_same_command_goes_on_once_the_disk_has_space(tmp_path):
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    with small_disk(tmp_path / "disk", "4m") as resize:
        home = tmp_path / "disk" / "run"
        full = command(tmp_path, home)
        assert full.returncode == 1, full.stderr
        last = full.stderr.splitlines()[-1]
        assert "could not be saved: No space left on device" in last
        assert "Free some space" in last and "The same command goes on from" in last
        names = [path.name for path in (home / "checkpoints").iterdir()]
        assert names and all(name.isdecimal() for name in names)
        resize("64m")
        freed = command(tmp_path, home)
        assert freed.returncode == 0, freed.stderr
        assert f"Resuming {home} at step {max(map(int, names))}" in freed.stdout
        assert sorted(losses(home)) == list(range(1, 9))


@pytest.mark.slow
def test_a_disk_that_is_full_at_the_start_is_said_before_anything_is_compiled(
    tmp_path,
):
    (tmp_path / "experiment.py").write_text(EXPERIMENT)
    with small_disk(tmp_path / "disk", "64k"):
        (tmp_path / "disk" / "rubbish").write_bytes(bytes(64 * 1024))
        full = command(tmp_path, tmp_path / "disk" / "run")
    assert full.returncode == 2
    assert "cannot be written (No space left on device)" in full.stderr
