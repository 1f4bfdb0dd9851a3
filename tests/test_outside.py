"""What is added from outside the package: one file each, by the README's map alone."""

import importlib
import json
from pathlib import Path

import jax
import pytest

import jaxpar
from jaxpar.cli import main
from tests.outside.own_event import StopBelow
from tests.outside.own_objective import experiment

FOLDER = Path(__file__).parent / "outside"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own_source", "own_objective"])
def test_an_own_part_is_trained_with_and_evaluated(name, tmp_path, capsys):
    file, run = str(FOLDER / f"{name}.py"), str(tmp_path / "run")
    assert main(["pretrain", file, "--run-dir", run]) == 0
    assert main(["evaluate", run, "--import", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found["step"] == 3 and 0 < found["nats_per_token"] < 7
    assert main(["evaluate", run]) == 2
    assert "--import" in capsys.readouterr().err


def test_the_fields_of_an_own_source_are_flags(tmp_path, capsys):
    file = str(FOLDER / "own_source.py")
    assert main(["pretrain", file, "--help"]) == 0
    assert "--data.n" in capsys.readouterr().out
    flags = ["--data.n", "2", "--run-dir", str(tmp_path / "run")]
    assert main(["pretrain", file, *flags]) == 2
    assert "countdowns" in capsys.readouterr().err


def test_an_own_event_stops_the_loop():
    placed = experiment.layout.on(jax.devices())
    recipe, prepared = experiment.recipe(), experiment.data.prepare(progress=False)
    feed = jaxpar.batches(
        prepared.train,
        experiment.objective.row,
        batch_size=experiment.data.batch_size,
        seed=experiment.seed,
        placed=placed,
    )
    _, history = jaxpar.fit(
        jaxpar.create(recipe, placed, seed=experiment.seed),
        feed,
        jaxpar.make_train_step(recipe, placed),
        num_steps=10,
        events=[StopBelow(100.0)],
    )
    feed.close()
    assert history.stop.reason.endswith("below 100.0") and len(history.rows) == 2


def test_each_file_is_found_by_this_test():
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == {"own_source", "own_objective", "own_event", "own_model"}
    assert all(importlib.import_module(f"tests.outside.{name}") for name in names)
