"""metrics.jsonl holds no step that the run has not done, and no other step's score.

pytest tests/run/test_resumed_metrics.py
"""

import dataclasses
import json
import os

import pytest

from jaxpar import pretrain
from jaxpar.data.source import Text
from jaxpar.experiment import Pretrain
from jaxpar.metrics.metrics_file import drop_rows_after, last_evaluation, read_metrics
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.run.outcome import Outcome

RUN = Pretrain(
    model=sizes.llama(
        vocab_size=260, n_layers=1, d_embed=8, n_heads=2, n_kv_heads=2, d_mlp=16,
        max_positions=32,
    ),
    data=Text("synthetic", seq_len=32, batch_size=8),
    optim=AdamW(peak_lr=1e-2, warmup_steps=2, decay_steps=4),
    layout=Layout.parse("data=8"),
    num_steps=4, eval_every=50, save_every=4, log_every=1,
)  # fmt: skip


def lines(*rows):
    return "".join(
        row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows
    )


def dead_session(home):
    """Writes what a session does that is killed long after its last checkpoint."""
    score = {"split": "heldout", "nats_per_token": 0.001, "nats_per_byte": 0.001}
    with open(home / "metrics.jsonl", "a") as file:
        file.write(lines(*({"step": i, "loss": 0.001} for i in range(5, 40))))
        file.write(lines({"step": 30, **score}, '{"step": 4'))


@pytest.mark.slow
def test_a_resumed_run_reports_its_own_score_and_drops_the_dead_sessions_rows(
    tmp_path, capsys
):
    home = tmp_path / "run"
    assert pretrain.main(RUN, run_dir=home) == 0
    before = read_metrics(home / "metrics.jsonl")
    dead_session(home)
    # Nothing left to do: the file is as it was, and the score is of step 4.
    text = (home / "metrics.jsonl").read_text()
    capsys.readouterr()
    assert pretrain.main(RUN, run_dir=home) == 0
    assert "Held out at step 4:" in capsys.readouterr().out
    assert (home / "metrics.jsonl").read_text() == text
    longer = dataclasses.replace(RUN, num_steps=6)
    assert pretrain.main(longer, run_dir=home) == 0
    out = capsys.readouterr().out
    assert "Held out at step 6:" in out and "0.0010" not in out
    rows = read_metrics(home / "metrics.jsonl")
    assert rows[: len(before)] == before
    assert sorted({row["step"] for row in rows}) == [0, 1, 2, 3, 4, 5, 6]
    assert all(row.get("loss", 1.0) > 0.001 for row in rows)
    assert not list(home.glob("*.tmp"))


def test_only_rows_of_later_steps_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    kept = (
        {"step": 3, "loss": None},
        "not a row\n",
        "[1]\n",
        {"step": 3, "split": "x"},
    )
    path.write_text(lines({"step": 4}, *kept, {"step": 5, "split": "x"}))
    drop_rows_after(path, 3)
    assert path.read_text() == lines(*kept)
    drop_rows_after(tmp_path / "missing", 3)
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_file_without_later_steps_is_not_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines({"step": 3}))
    inode = path.stat().st_ino
    drop_rows_after(path, 3)
    assert path.stat().st_ino == inode


def test_a_linked_file_stays_a_link(tmp_path):
    (tmp_path / "far").write_text(lines({"step": 3}, {"step": 4}))
    (tmp_path / "metrics.jsonl").symlink_to("far")
    drop_rows_after(tmp_path / "metrics.jsonl", 3)
    assert (tmp_path / "metrics.jsonl").is_symlink()
    assert (tmp_path / "far").read_text() == lines({"step": 3})


def test_the_last_evaluation_is_of_a_step_that_was_done(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(lines(*({"step": i, "split": "heldout"} for i in (0, 4, 8))))
    assert last_evaluation(path, up_to=7) == {"step": 4, "split": "heldout"}
    assert last_evaluation(tmp_path / "missing", up_to=7) is None


@pytest.mark.parametrize("value", [None, 2.5])
def test_a_score_that_is_not_finite_is_reported(value, capsys):
    score = {"step": 4, "nats_per_byte": value, "nats_per_token": value}
    home = type("Home", (), {"path": "runs/x"})
    outcome = Outcome(4, "done", score, None, False, None)
    assert outcome.report(home) == 0
    said = "not a finite number of nats/token" if value is None else "2.5000 nats/token"
    assert said in capsys.readouterr().out
