"""A run directory belongs to one experiment, and says what became of it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from jaxpar.config import fingerprint
from jaxpar.data.source import Text
from jaxpar.data.tokenizer import Bytes
from jaxpar.errors import UserError
from jaxpar.experiment import Finetune, Pretrain
from jaxpar.guard.sealed_json import write_json
from jaxpar.metrics.metrics_file import read_metrics
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.run.directory import RunDir, default_dir
from jaxpar.train.converge import Converged, Never
from jaxpar.train.state import TrainState

RUN = Pretrain(
    model=sizes.llama(
        vocab_size=300, n_layers=1, d_embed=16, n_heads=2, n_kv_heads=2, d_mlp=16,
        max_positions=16,
    ),
    data=Text("synthetic", tokenizer=Bytes(), seq_len=16, batch_size=8),
    optim=AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=10),
    num_steps=10,
)  # fmt: skip


def checkpointed(home, *steps, best=()):
    saver = home.checkpoints(keep=9, read_only=False)
    for step in steps:
        state = TrainState(jnp.int32(step), {"w": jnp.ones(2)}, (), jnp.int32(0))
        saver.save(step, state, memory={}, best=step in best)
    saver.close()


def test_a_claimed_directory_gives_its_experiment_back(tmp_path):
    source = tmp_path / "x.py"
    source.write_text("raise SystemExit('never executed')\n")
    home = RunDir(tmp_path / "run")
    assert not home.claim(RUN, source_file=source)
    assert home.open() == RUN
    assert (home.path / "experiment.py").read_text() == source.read_text()
    assert home.claim(RUN)


def test_what_does_not_change_the_numbers_may_change_on_resume(tmp_path):
    home = RunDir(tmp_path)
    home.claim(RUN)
    other = dataclasses.replace(RUN, layout=Layout.parse("fsdp=8"), num_steps=20)
    assert home.claim(other)
    assert home.open() == other
    assert default_dir("x", RUN) == default_dir("x", other)


def test_another_experiment_is_refused_with_every_field_in_two_groups(tmp_path):
    home = RunDir(tmp_path)
    home.claim(RUN)
    other = dataclasses.replace(
        RUN,
        seed=1,
        optim=dataclasses.replace(RUN.optim, peak_lr=2e-3),
        num_steps=20,
    )
    with pytest.raises(UserError) as told:
        home.claim(other)
    forbidden, allowed = str(told.value).split("These may differ")
    assert "optim.peak_lr: 0.002 here, 0.001 there" in forbidden
    assert "seed: 1 here, 0 there" in forbidden
    assert "num_steps" in allowed and "num_steps" not in forbidden
    assert home.open() == RUN


def test_a_run_of_classes_that_are_gone_is_another_experiment(tmp_path):
    home = RunDir(tmp_path)
    home.claim(RUN)
    data = json.loads(home.config_path.read_text())
    write_json(home.config_path, {**data, "model": {"type": "Gone"}})
    with pytest.raises(UserError, match="another experiment.*'Gone'"):
        home.claim(RUN)


def test_checkpoints_of_an_unknown_experiment_are_not_resumed(tmp_path):
    home = RunDir(tmp_path)
    home.claim(RUN)
    checkpointed(home, 1)
    home.config_path.unlink()
    with pytest.raises(UserError, match=r"no config\.json says of which"):
        home.claim(RUN)
    assert not home.exists()


def test_what_is_no_run_is_said_to_be_none(tmp_path):
    for ask in (RunDir.open, lambda home: home.choose_step("newest")):
        with pytest.raises(UserError, match="is not a run"):
            ask(RunDir(tmp_path / "absent"))
    for text, said in (("{", "is not JSON"), ("[]", r"is not a JSON object \(\[\]")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=said):
            RunDir(tmp_path).open()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunDir(tmp_path / "file").claim(RUN)


def test_a_run_means_its_best_where_a_rule_stops_it_else_its_newest(tmp_path):
    home = RunDir(tmp_path)
    home.claim(RUN)
    with pytest.raises(UserError, match="no checkpoint yet"):
        home.choose_step(None)
    checkpointed(home, 0, 5, best=(0,))
    rule = Converged(patience=2, min_improvement=0.1)
    assert home.choose_step(None, rule=Never()) == home.choose_step("newest") == 5
    assert home.choose_step(None, rule=rule) == home.choose_step("best") == 0
    assert home.choose_step("5") == home.choose_step(5) == 5
    for absent in (3, "later"):
        with pytest.raises(UserError, match=rf"no step {absent}.*\[0, 5\]"):
            home.choose_step(absent)


def test_each_session_adds_to_the_receipt(tmp_path):
    home = RunDir(tmp_path)
    home.receipt.add(layout="data=8", data={"content": "1f"})
    home.receipt.add(layout="fsdp=8", data={"content": "1f"})
    first, second = json.loads((tmp_path / "receipt.json").read_text())["sessions"]
    assert (first["layout"], second["layout"]) == ("data=8", "fsdp=8")
    assert second["n_devices"] == jax.device_count()
    assert second["versions"]["jax"] == jax.__version__
    assert {"started", "python", "platform", "device_kind", "code"} <= second.keys()


def test_a_later_line_of_a_step_counts_and_half_a_line_does_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 1, "loss": 3.0}, {"step": 2, "loss": 9.0},
        {"step": 2, "split": "heldout", "nats_per_token": 4.0},
        {"step": 2, "loss": 2.0},
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in lines) + '{"step": 3, "l')
    losses = [row["loss"] for row in read_metrics(path) if "loss" in row]
    assert losses == [3.0, 2.0]
    assert {"step": 2, "split": "heldout", "nats_per_token": 4.0} in read_metrics(path)


def test_a_fine_tune_is_known_by_what_it_started_from_never_by_a_path():
    def home(start_from, origin, **fields):
        tune = Finetune(
            start_from=start_from, data=RUN.data, optim=RUN.optim, num_steps=1, **fields
        )
        return default_dir("x", tune, start_from=origin)

    assert home("runs/a", "1f@3") == home("elsewhere/a", "1f@3")
    assert home("runs/a", "1f@3") != home("runs/a", "1f@4")
    assert home("runs/a", "1f@3") != home("runs/a", "1f@3", seed=1)


@pytest.mark.parametrize("name", ["a[e]", "a*", "a?b", "a]"])
def test_a_run_that_could_not_be_read_again_is_refused_before_it_is_made(
    tmp_path, monkeypatch, name
):
    for path in (tmp_path / name, tmp_path / name / "inner"):
        with pytest.raises(UserError, match=r"wildcards.*Choose a directory without"):
            RunDir(path)
    assert not list(tmp_path.iterdir())
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    with pytest.raises(UserError, match="wildcards"):
        RunDir("runs/x")


def test_a_run_whose_path_orbax_can_read_is_read_though_no_new_one_is_made(tmp_path):
    (tmp_path / "a?b").mkdir()
    (tmp_path / "a?b" / "config.json").write_text("[]")
    assert RunDir(tmp_path / "a?b").exists()
    (tmp_path / "a[b]").mkdir()
    (tmp_path / "a[b]" / "config.json").write_text("[]")
    with pytest.raises(UserError, match="wildcards"):
        RunDir(tmp_path / "a[b]")


def test_a_directory_whose_name_is_not_utf8_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"caf\\udce9' is not UTF-8"):
        RunDir(tmp_path / "caf\udce9")


def test_a_resumed_run_without_a_stopping_rule_may_evaluate_otherwise(tmp_path):
    other = dataclasses.replace(RUN, eval_every=RUN.eval_every + 1)
    run = RunDir(tmp_path / "run")
    run.claim(RUN)
    assert run.claim(other) and run.open() == other
    assert fingerprint(other) != fingerprint(RUN)
    ruled = RunDir(tmp_path / "ruled")
    ruled.claim(dataclasses.replace(RUN, stop=Converged()))
    with pytest.raises(UserError, match="eval_every"):
        ruled.claim(dataclasses.replace(other, stop=Converged()))
