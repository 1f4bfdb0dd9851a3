"""A damaged run says so: it goes back, refuses, and never starts anew unasked."""

import json
import shutil
from pathlib import Path

import pytest

from jaxpar import evaluate, finetune, pretrain
from jaxpar.checkpoint.verified import Check
from jaxpar.cli import main
from jaxpar.data.source import Text
from jaxpar.data.tokenizer import BPE
from jaxpar.errors import NoUsableCheckpoint, UserError
from jaxpar.experiment import Finetune, Pretrain
from jaxpar.generate.answer import main as answer
from jaxpar.metrics.metrics_file import read_metrics
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.run.directory import RunDir

OLD = Path(__file__).parent.parent / "formats" / "1" / "run"
MODEL = sizes.llama(
    vocab_size=260, n_layers=1, d_embed=16, n_heads=2, n_kv_heads=2, d_mlp=32,
    max_positions=64,
)  # fmt: skip
RUN = Pretrain(
    model=MODEL,
    data=Text("synthetic", seq_len=64, batch_size=8),
    optim=AdamW(peak_lr=1e-2, warmup_steps=2, decay_steps=8),
    num_steps=6,
    layout=Layout.parse("data=8"),
    eval_every=6,
    save_every=2,
    keep=3,
)
PARAMS_FILE = "params/_METADATA"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs") / "whole"
    assert pretrain.main(RUN, run_dir=home) == 0
    return home


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def flip(run, step, name=PARAMS_FILE):
    path = run / "checkpoints" / str(step) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def losses(run):
    rows = read_metrics(run / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def test_a_resumed_run_goes_back_aloud_and_saves_again(run, whole, capsys):
    before = losses(whole)
    flip(run, 6)
    assert pretrain.main(RUN, run_dir=run) == 0
    captured = capsys.readouterr()
    assert f"step 6: {PARAMS_FILE}: content changed; going back to step 4" in (
        captured.err
    )
    assert f"Resuming {run} at step 4" in captured.out
    assert losses(run) == before
    assert RunDir(run).checkpoints().steps() == [2, 4, 6]
    assert (run / "checkpoints" / "damaged-6").is_dir()
    assert RunDir(run).check(Check(strict=True)) == ([2, 4, 6], {})


def test_strict_refuses_and_changes_nothing(run):
    flip(run, 6)
    with pytest.raises(NoUsableCheckpoint, match=f"step 6: {PARAMS_FILE}.*--strict"):
        pretrain.main(RUN, run_dir=run, check=Check(strict=True))
    with pytest.raises(NoUsableCheckpoint, match=f"step 6: {PARAMS_FILE}.*--strict"):
        evaluate.main(run, check=Check(strict=True))
    assert (run / "checkpoints" / "6").is_dir()


@pytest.mark.slow
def test_reading_goes_back_too_but_not_from_a_number(run, capsys):
    flip(run, 6)
    assert evaluate.main(run)["step"] == 4
    assert "going back to step 4" in capsys.readouterr().err
    assert (run / "checkpoints" / "6").is_dir(), "reading changes nothing"
    assert evaluate.main(run, step=4)["step"] == 4
    with pytest.raises(NoUsableCheckpoint, match=f"6 is damaged: {PARAMS_FILE}"):
        evaluate.main(run, step=6)


@pytest.mark.slow
def test_the_flags_reach_the_checkpoint(run, capsys):
    flip(run, 6, "memory/commit_success.txt")
    words = ["generate", str(run), "--token-ids", "1,2", "--max-new-tokens", "1"]
    assert main([*words, "--strict"]) == 4
    assert "step 6: memory/commit_success.txt" in capsys.readouterr().err
    assert main([*words, "--step", "6"]) == 4
    capsys.readouterr()
    for how, step in (("full", 4), ("sizes", 6), ("none", 6)):
        assert main([*words, "--verify", how, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["step"] == step


def test_check_names_every_damaged_file_of_every_step(run, capsys):
    assert main(["check", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"good": [2, 4, 6], "bad": []}
    flip(run, 2)
    flip(run, 6, "metrics/metrics")
    assert main(["check", str(run), "--json"]) == 4
    assert json.loads(capsys.readouterr().out) == {
        "good": [4],
        "bad": [
            {"step": 2, "file": PARAMS_FILE},
            {"step": 6, "file": "metrics/metrics"},
        ],
    }
    assert main(["check", str(run)]) == 4
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"step 2: {PARAMS_FILE}",
        "step 4: good",
        "step 6: metrics/metrics",
    ]
    assert f"step 2: {PARAMS_FILE}: content changed" in captured.err
    assert main(["check", str(run), "--verify", "sizes"]) == 0
    for step in (2, 4, 6):
        shutil.rmtree(run / "checkpoints" / str(step))
    assert main(["check", str(run)]) == 4
    assert main(["check", str(run / "none")]) == 2


@pytest.mark.slow
def test_damaged_metrics_of_a_step_leave_the_run_usable(run, capsys):
    (run / "checkpoints" / "2" / "metrics" / "metrics").write_bytes(b"\xff")
    assert evaluate.main(run)["step"] == 6
    assert evaluate.main(run, step=4)["step"] == 4
    assert pretrain.main(RUN, run_dir=run) == 0
    assert "step 2: metrics/metrics" in capsys.readouterr().err
    assert (run / "checkpoints" / "damaged-2").is_dir()


@pytest.mark.parametrize("whole_folder", [True, False])
def test_a_run_whose_checkpoints_are_gone_does_not_start_anew(run, whole_folder):
    shutil.rmtree(run / "checkpoints")
    if not whole_folder:
        (run / "checkpoints").mkdir()
    before = (run / "metrics.jsonl").read_text()
    words = "saved.json says that it saved step 6, but there is none .* --run-dir"
    for attempt in (
        lambda: pretrain.main(RUN, run_dir=run),
        lambda: pretrain.main(RUN, run_dir=run, check=Check("none")),
        lambda: evaluate.main(run),
    ):
        with pytest.raises(NoUsableCheckpoint, match=words):
            attempt()
    assert (run / "metrics.jsonl").read_text() == before


def test_a_run_whose_steps_are_all_damaged_names_each(run):
    for step in (2, 4, 6):
        flip(run, step)
    with pytest.raises(NoUsableCheckpoint, match="step 6: .*; step 4: .*; step 2: "):
        pretrain.main(RUN, run_dir=run)
    for step in (2, 4, 6):
        (run / "checkpoints" / str(step)).rename(
            run / "checkpoints" / f"damaged-{step}"
        )
    with pytest.raises(NoUsableCheckpoint, match="only damaged-2, damaged-4, damaged"):
        pretrain.main(RUN, run_dir=run)


@pytest.mark.slow
def test_a_run_that_was_killed_before_it_saved_starts_anew(run, whole):
    shutil.rmtree(run / "checkpoints")
    (run / "saved.json").write_text('{"step": null}')
    assert pretrain.main(RUN, run_dir=run) == 0
    assert losses(run) == losses(whole)


@pytest.mark.slow
def test_the_metrics_speak_for_a_run_of_an_older_version(run):
    shutil.rmtree(run / "checkpoints")
    (run / "saved.json").unlink()
    with pytest.raises(NoUsableCheckpoint, match="metrics.jsonl has metrics of step 6"):
        pretrain.main(RUN, run_dir=run)
    (run / "metrics.jsonl").unlink()
    assert pretrain.main(RUN, run_dir=run) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sessions": [3]}', "\0"])
@pytest.mark.parametrize("name", ["receipt.json", "saved.json"])
def test_a_torn_record_is_refused_by_name(run, name, text):
    (run / name).write_text(text)
    if name == "saved.json":
        shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match=f"{name} is damaged.*--run-dir"):
        pretrain.main(RUN, run_dir=run)
    assert (run / name).read_text() == text


def test_a_run_of_before_manifests_is_opened_with_a_warning(tmp_path, capsys):
    run = shutil.copytree(OLD, tmp_path / "run")
    assert RunDir(run).choose_step(None) == 6
    assert "6 has no jaxpar_manifest.json" in capsys.readouterr().err
    assert RunDir(run).check(Check()) == ([6], {})
    with pytest.raises(NoUsableCheckpoint, match="jaxpar_manifest.json: missing"):
        RunDir(run).choose_step(None, check=Check(strict=True))


def test_a_tokenizer_that_is_swapped_with_its_mark_is_refused(run):
    shutil.rmtree(run / "tokenizer")
    texts = [b"some words to learn from, " * 40]
    BPE(259).build(texts).save(run / "tokenizer")
    words = "tokenizer is not the tokenizer that step 6 was trained with"
    with pytest.raises(UserError, match=words):
        evaluate.main(run)
    with pytest.raises(UserError, match=words):
        answer(run, prompts=["a"])
    tuned = Finetune(
        start_from=str(run),
        data=RUN.data,
        optim=RUN.optim,
        num_steps=1,
        layout=RUN.layout,
    )
    with pytest.raises(UserError, match=words):
        finetune.main(tuned, run_dir=run.parent / "tuned")
