"""Runs that are killed, stopped or cannot write end as those that never were.

pytest --faults P --full-compile tests/test_stopped_runs.py
"""

import dataclasses

import pytest

from experiments.drills.kills import Kill, drill, parameters_of, rows_of
from experiments.drills.tiny import experiment
from jaxpar import pretrain
from jaxpar.errors import JaxparError
from jaxpar.metrics.sinks import JsonlSink
from jaxpar.run.directory import RunDir


@pytest.mark.slow
@pytest.mark.exact
def test_a_run_that_is_killed_ends_as_one_that_never_was(tmp_path):
    kills = [Kill("step", 7), Kill("save", 21), Kill("delete", 9), Kill("save", 33)]
    assert drill(tmp_path / "runs", 1, kills)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.exact
def test_kills_at_many_moments(tmp_path):
    kills = [Kill(where, n) for n in (3, 11, 17) for where in ("delete", "save")]
    assert drill(tmp_path / "runs", 1, kills)


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.exact
def test_a_hundred_resumes_of_one_step(tmp_path):
    run = dataclasses.replace(experiment, eval_every=50)
    for n_steps in range(1, 101):
        part = dataclasses.replace(run, num_steps=n_steps)
        assert pretrain.main(part, run_dir=tmp_path / "parts") == 0
    whole = dataclasses.replace(run, num_steps=100)
    assert pretrain.main(whole, run_dir=tmp_path / "whole") == 0
    assert parameters_of(tmp_path / "parts") == parameters_of(tmp_path / "whole")
    # Each end of a part was evaluated, too.
    losses = [
        [row for row in rows_of(tmp_path / name) if "split" not in row]
        for name in ("parts", "whole")
    ]
    assert losses[0] == losses[1]


def test_a_metrics_file_that_fails_saves_before_it_ends_the_run(tmp_path, monkeypatch):
    write = JsonlSink.write

    def fails(sink, row):
        if row["step"] >= 7:
            raise OSError(28, "No space left on device")
        write(sink, row)

    run = dataclasses.replace(experiment, num_steps=20, save_every=100)
    with monkeypatch.context() as patch:
        patch.setattr(JsonlSink, "write", fails)
        with pytest.raises(JaxparError, match="rows from step 7 on are missing"):
            pretrain.main(run, run_dir=tmp_path / "run")
    saved = RunDir(tmp_path / "run").checkpoints().newest()
    assert saved is not None and saved >= 7
    assert pretrain.main(run, run_dir=tmp_path / "run") == 0
