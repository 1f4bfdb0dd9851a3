"""The entry points: train, stop, resume, fine-tune, evaluate; meeting only on disk.

pytest tests/test_pretrain.py
"""

import dataclasses
import itertools
import json
import os
import signal
import threading

import jax
import numpy as np
import pytest

from jaxpar import evaluate, finetune, pretrain
from jaxpar.data import loader
from jaxpar.data.source import Text
from jaxpar.errors import UserError
from jaxpar.experiment import Finetune, Pretrain
from jaxpar.metrics.metrics_file import read_metrics
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.run import fitting, outcome
from jaxpar.run.directory import RunDir
from jaxpar.train.converge import Converged
from jaxpar.train.state import NEVER
from jaxpar.train.step import make_eval_step, make_train_step
from jaxpar.tree import flatten

MODEL = sizes.llama(
    vocab_size=260, n_layers=1, d_embed=16, n_heads=2, n_kv_heads=2, d_mlp=32,
    max_positions=512,
)  # fmt: skip
DATA = Text("synthetic", seq_len=512, batch_size=8)
RUN = Pretrain(
    model=MODEL,
    data=DATA,
    optim=AdamW(peak_lr=1e-2, warmup_steps=2, decay_steps=4),
    num_steps=6,
    layout=Layout.parse("fsdp=4,tensor=2"),
    eval_every=4,
    save_every=3,
    log_every=4,
)
# Waits to be told to decay, and is told as soon as two evaluations can be compared.
HASTY = dataclasses.replace(
    RUN,
    optim=dataclasses.replace(RUN.optim, stable_steps=-1, final_lr=0.0),
    stop=Converged(patience=1, min_improvement=0.9, smoothing=1, share=1.0),
    layout=Layout.parse("data=8"),
    data=dataclasses.replace(DATA, seq_len=64, batch_size=64),
    eval_every=4,
    num_steps=40,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole run, and its last state."""
    home = tmp_path_factory.mktemp("runs") / "whole"
    assert pretrain.main(RUN, run_dir=home) == 0
    return home


def state_of(home, run=RUN):
    checkpoints = RunDir(home).checkpoints(read_only=True)
    placed = run.layout.on(jax.devices()[: run.layout.n_devices])
    state, memory = checkpoints.restore(
        checkpoints.newest(), run.recipe().target(placed)
    )
    checkpoints.close()
    return jax.device_get(state), memory


def assert_same(ours, theirs):
    flat, other = (jax.tree.leaves_with_path(s) for s in (ours, theirs))
    for (path, leaf), (_, twin) in zip(flat, other, strict=True):
        np.testing.assert_array_equal(leaf, twin, err_msg=str(path))


def test_pretrain_has_a_pulse(trained):
    rows = read_metrics(trained / "metrics.jsonl")
    steps = [row for row in rows if "split" not in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert {"step", "loss", "tokens", "seconds", "grad_norm", "learning_rate",
            "tokens_per_second", "mfu"} <= steps[0].keys()  # fmt: skip
    scores = [row for row in rows if "split" in row]
    assert [row["step"] for row in scores] == [0, 4, 6]
    assert scores[-1]["nats_per_byte"] < scores[0]["nats_per_byte"]
    assert steps[0]["learning_rate"] == pytest.approx(float(RUN.optim.schedule(0)))


def test_a_finished_run_has_nothing_left_to_do(trained, capsys):
    before = state_of(trained)
    assert pretrain.main(RUN, run_dir=trained) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert_same(state_of(trained)[0], before[0])


@pytest.mark.slow
@pytest.mark.exact
def test_stopping_on_request_and_resuming_is_the_same_as_never_stopping(
    trained, tmp_path, monkeypatch, capsys
):
    def interrupted(*args, **kwargs):
        step = make_train_step(*args, **kwargs)

        def train_step(state, batch):
            if int(state.step) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(state, batch)

        return train_step

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "make_train_step", interrupted)
        assert pretrain.main(RUN, run_dir=tmp_path / "run") == 75
    assert "SIGTERM" in capsys.readouterr().out
    assert RunDir(tmp_path / "run").checkpoints(read_only=True).newest() == 2
    assert pretrain.main(RUN, run_dir=tmp_path / "run") == 0
    (ours, memory), (theirs, other) = state_of(tmp_path / "run"), state_of(trained)
    assert_same(ours, theirs)
    assert memory == other
    ours, theirs = (
        [(row["step"], row.get("loss"), row.get("nats_per_token")) for row in rows]
        for rows in map(
            read_metrics, (tmp_path / "run/metrics.jsonl", trained / "metrics.jsonl")
        )
    )
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.exact
def test_an_evaluation_that_a_signal_ends_is_made_again_when_the_run_goes_on(
    trained, tmp_path, monkeypatch
):
    def interrupted(*args, **kwargs):
        evaluate, calls = make_eval_step(*args, **kwargs), itertools.count()

        def eval_step(params, batch):
            # Each evaluation has the same number of batches; this is in the second.
            if next(calls) == n_batches + 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return evaluate(params, batch)

        return eval_step

    n_batches = len(RUN.data.prepare(None).heldout) // RUN.data.batch_size + 1
    run = dataclasses.replace(RUN, stop=Converged(patience=9), num_steps=6)
    assert pretrain.main(run, run_dir=tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "make_eval_step", interrupted)
        assert pretrain.main(run, run_dir=tmp_path / "run") == 75
    assert RunDir(tmp_path / "run").checkpoints(read_only=True).newest() == 4
    assert [r["step"] for r in evaluations(tmp_path / "run")] == [0]
    assert pretrain.main(run, run_dir=tmp_path / "run") == 0
    assert evaluations(tmp_path / "run") == evaluations(tmp_path / "whole")
    ours, theirs = (state_of(tmp_path / name, run) for name in ("run", "whole"))
    assert_same(ours[0], theirs[0])
    assert ours[1] == theirs[1]


def evaluations(run):
    return [row for row in read_metrics(run / "metrics.jsonl") if "split" in row]


@pytest.mark.parametrize(
    ("part", "after", "saved"), [("train", 0, 1), ("heldout", 1, 4)]
)
def test_a_batch_that_never_comes_does_not_keep_a_run_from_stopping(
    tmp_path, monkeypatch, part, after, saved
):
    def row(windows, make_row, number, i, *more):
        if len(windows) == n_windows and (number, i) == (1, 0) and next(times) == after:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
            never.wait()
        return loader_row(windows, make_row, number, i, *more)

    prepared = RUN.data.prepare(None)
    n_windows = len(getattr(prepared, part))
    never, times, loader_row = threading.Event(), itertools.count(), loader._row
    monkeypatch.setattr(loader, "_row", row)
    try:
        assert pretrain.main(RUN, run_dir=tmp_path / "run") == 75
    finally:
        never.set()
    assert RunDir(tmp_path / "run").checkpoints(read_only=True).newest() == saved


@pytest.mark.slow
def test_a_run_that_converged_stops_at_the_same_step_when_resumed(tmp_path, capsys):
    assert pretrain.main(HASTY, run_dir=tmp_path / "one") == 0
    assert "the learning rate has decayed" in capsys.readouterr().out
    for num_steps in (3, 40):
        part = dataclasses.replace(HASTY, num_steps=num_steps)
        assert pretrain.main(part, run_dir=tmp_path / "two") == 0
    (ours, memory), (theirs, other) = (
        state_of(tmp_path / name, HASTY) for name in ("one", "two")
    )
    assert int(ours.step) < 40
    assert_same(ours, theirs)
    # The second run's first end was evaluated off schedule, and may have been the best.
    for found in (memory, other):
        del found["rule"]["best"]
    assert memory == other and "decayed" in memory["stopped"]
    assert pretrain.main(HASTY, run_dir=tmp_path / "one") == 0
    assert "nothing left to do: converged" in capsys.readouterr().out


def test_steps_that_end_before_the_decay_does_are_said():
    schedule, waits = RUN.optim.schedule, HASTY.optim.schedule
    assert "decay would end at step 6" in outcome.unfinished(schedule, 5, NEVER)
    assert outcome.unfinished(schedule, 6, NEVER) == ""
    assert "has not begun to decay" in outcome.unfinished(waits, 5, NEVER)
    assert outcome.unfinished(waits, 9, 5) == ""


def test_finetune_starts_where_the_source_ended(trained, tmp_path):
    run = Finetune(
        start_from=str(trained),
        data=DATA,
        optim=AdamW(peak_lr=1e-3, warmup_steps=0, decay_steps=2),
        num_steps=2,
        layout=Layout.parse("data=8"),
    )
    assert finetune.main(run, run_dir=tmp_path / "fine") == 0
    rows = read_metrics(tmp_path / "fine" / "metrics.jsonl")
    first = next(row for row in rows if "split" in row)
    before = [row for row in read_metrics(trained / "metrics.jsonl") if "split" in row]
    assert first["step"] == 0
    assert first["nats_per_token"] == pytest.approx(before[-1]["nats_per_token"], 1e-5)
    steps = [row for row in rows if "split" not in row]
    assert steps[0]["learning_rate"] == pytest.approx(float(run.optim.schedule(0)))
    assert RunDir(tmp_path / "fine").open().model == MODEL
    # The same source by another path is the same; another step of it is not.
    link = tmp_path / "moved"
    link.symlink_to(trained)
    moved = dataclasses.replace(run, start_from=str(link))
    assert finetune.main(moved, run_dir=tmp_path / "fine") == 0
    with pytest.raises(UserError, match=r"run and step \w+@6, --start-from is now"):
        finetune.main(run, run_dir=tmp_path / "fine", step=3)


def test_evaluate_says_what_the_run_itself_measured(trained):
    found = evaluate.main(trained, layout="data=1")
    assert list(json.loads(json.dumps(found))) == [
        "step", "windows", "tokens", "bytes",
        "nats_per_token", "nats_per_byte", "xz_nats_per_byte",
    ]  # fmt: skip
    last = read_metrics(trained / "metrics.jsonl")[-1]
    assert found["step"] == last["step"] == 6
    assert found["nats_per_byte"] == pytest.approx(last["nats_per_byte"], rel=1e-5)


def replaced(**fields):
    return dataclasses.replace(RUN, **fields)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (replaced(data=dataclasses.replace(DATA, seq_len=513)), "max_positions=512"),
        (replaced(model=dataclasses.replace(MODEL, vocab_size=99)), "vocab_size is 99"),
        (replaced(layout=Layout.parse("tensor=8")), "not divisible by 8"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_directory_is_made(run, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        pretrain.main(run, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_source_that_is_no_run_is_refused(tmp_path):
    run = Finetune(
        start_from=str(tmp_path),
        data=DATA,
        optim=RUN.optim,
        num_steps=1,
        layout=Layout.parse("data=8"),
    )
    with pytest.raises(UserError, match="is not a run"):
        finetune.main(run, run_dir=tmp_path / "run")


def test_parameters_are_saved_under_their_paths(trained):
    shapes = RunDir(trained).checkpoints(read_only=True).param_shapes(6)
    assert "embedding" in flatten(shapes)
