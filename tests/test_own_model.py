"""A model and an objective of one's own walk the whole road, on a mesh."""

import json
from pathlib import Path

import pytest

from jaxpar.cli import main

OWN = str(Path(__file__).parent / "outside" / "own_model.py")


def said(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_ones_own_model_is_trained_resumed_evaluated_and_generated_from(
    tmp_path, capsys
):
    run = str(tmp_path / "run")
    assert main(["pretrain", OWN, "--run-dir", run, "--num-steps", "2"]) == 0
    assert main(["pretrain", OWN, "--run-dir", run]) == 0
    assert "Resuming" in capsys.readouterr().out
    opening = ["--import", OWN, "--json", "--layout", "fsdp=4,tensor=2"]
    assert main(["evaluate", run, *opening]) == 0
    found = said(capsys)
    assert found["step"] == 4 and 0 < found["nats_per_token"] < 7
    ids = ["--token-ids", "1,2,3", "--max-new-tokens", "5", "--temperature", "0"]
    assert main(["generate", run, *opening, *ids]) == 0
    assert len(said(capsys)["tokens"]) == 5


@pytest.mark.parametrize("verb", ["pretrain", "show", "verify"])
def test_a_running_mean_is_refused_rows_in_zigzag_order(verb, tmp_path, capsys):
    where = ["--run-dir", str(tmp_path)] if verb == "pretrain" else []
    assert main([verb, OWN, "--layout", "ring=4", *where]) == 2
    said = capsys.readouterr().err
    assert "BagConfig: layout ring=4 splits rows in zigzag order" in said
    assert "in_order" in said and "ulysses" in said
    assert not list(tmp_path.iterdir())


def test_a_run_of_classes_unknown_here_says_how_to_name_them(tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["pretrain", OWN, "--run-dir", run, "--num-steps", "1"]) == 0
    assert main(["evaluate", run]) == 2
    assert "--import" in capsys.readouterr().err
