"""A run that meets a bad batch saves nothing of it, and says what is saved.

pytest tests/run/test_divergence.py
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxpar import pretrain
from jaxpar.data.order import order
from jaxpar.errors import Diverged
from jaxpar.metrics.metrics_file import read_metrics
from jaxpar.run import fitting
from jaxpar.run.directory import RunDir
from jaxpar.train.step import make_train_step
from tests.run.test_resumed_metrics import RUN

BAD = 3
SAVING = dataclasses.replace(RUN, num_steps=6, save_every=1, keep=1)


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """Weights that are NaN in the batch of step 3, whatever session meets it."""

    def make(*args, **kwargs):
        step = make_train_step(*args, **kwargs)

        def train_step(state, batch):
            if int(state.step) + 1 in POISONED:
                batch = {**batch, "weights": batch["weights"] * np.float32("nan")}
            return step(state, batch)

        return train_step

    POISONED.clear()
    POISONED.add(BAD)
    monkeypatch.setattr(fitting, "make_train_step", make)


POISONED = set()


def saved(home):
    """The steps that are kept, and whether all that they hold is finite."""
    checkpoints = RunDir(home).checkpoints(read_only=True)
    placed = RUN.layout.on(jax.devices())
    target = RUN.recipe().target(placed)
    states = {
        step: checkpoints.restore(step, target)[0] for step in checkpoints.steps()
    }
    checkpoints.close()
    return {
        step: all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(state)))
        for step, state in states.items()
    }


@pytest.mark.slow
def test_stopping_keeps_the_last_good_step_however_often_it_is_tried(tmp_path):
    windows = len(RUN.data.prepare(progress=False).train)
    ids = order(RUN.seed, BAD - 1, RUN.data.batch_size, windows).tolist()
    for _ in range(2):
        with pytest.raises(Diverged) as found:
            pretrain.main(SAVING, run_dir=tmp_path / "run")
        said = str(found.value)
        assert (
            "Step 3 was not applied" in said and "newest checkpoint is step 2" in said
        )
        assert f"windows {', '.join(map(str, ids))}." in said
        assert saved(tmp_path / "run") == {2: True}
    (row,) = [
        r for r in read_metrics(tmp_path / "run/metrics.jsonl") if r.get("skipped")
    ]
    assert (row["step"], row["windows"]) == (BAD, ids)
    # The batch is good again, as where a disk was to blame: the run goes on.
    POISONED.clear()
    assert pretrain.main(SAVING, run_dir=tmp_path / "run") == 0
    assert saved(tmp_path / "run") == {6: True}


@pytest.mark.slow
def test_a_run_that_has_saved_nothing_says_so(tmp_path):
    with pytest.raises(Diverged, match="No checkpoint has been saved"):
        pretrain.main(RUN, run_dir=tmp_path / "run")


@pytest.mark.slow
def test_skipping_passes_over_the_batch_and_counts_it(tmp_path):
    run = dataclasses.replace(SAVING, on_nonfinite="skip")
    assert pretrain.main(run, run_dir=tmp_path / "run") == 0
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [r["step"] for r in rows if r.get("skipped")] == [BAD]
    assert saved(tmp_path / "run") == {6: True}
    text = (tmp_path / "run/metrics.jsonl").read_text()
    assert all(json.loads(line) for line in text.splitlines()) and "NaN" not in text


@pytest.mark.slow
def test_skipping_ends_after_max_skipped_steps_in_a_row(tmp_path):
    POISONED.update(range(3, 100))
    run = dataclasses.replace(SAVING, on_nonfinite="skip", max_skipped=2)
    with pytest.raises(Diverged, match="Step 4 .* number 2 in a row"):
        pretrain.main(run, run_dir=tmp_path / "run")


@pytest.mark.slow
def test_a_moment_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
    """An optimizer may spoil its own state without a word in its updates."""
    POISONED.clear()

    def make(*args, **kwargs):
        step = make_train_step(*args, **kwargs)

        def train_step(state, batch):
            state, metrics = step(state, batch)
            if int(state.step) < BAD:
                return state, metrics
            spoiled = jax.tree.map(lambda x: x / 0.0, state.opt_state)
            return dataclasses.replace(state, opt_state=spoiled), metrics

        return train_step

    monkeypatch.setattr(fitting, "make_train_step", make)
    with pytest.raises(Diverged, match="Step 3 is not saved: the optimizer's .*step 2"):
        pretrain.main(SAVING, run_dir=tmp_path / "run")
    assert saved(tmp_path / "run") == {2: True}


@pytest.mark.slow
@pytest.mark.parametrize("rate", [1e3, 1e9])
def test_any_learning_rate_ends_with_a_report_or_as_diverged(tmp_path, rate, capsys):
    POISONED.clear()
    optim = dataclasses.replace(RUN.optim, peak_lr=rate, warmup_steps=0, clip_norm=rate)
    run = dataclasses.replace(SAVING, optim=optim, eval_every=2, keep=2)
    try:
        assert pretrain.main(run, run_dir=tmp_path / "run") == 0
    except Diverged:
        pass
    found = saved(tmp_path / "run")
    assert all(found.values()), found
