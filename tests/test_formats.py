"""What was once written stays readable: runs, fingerprints, paths of modules.

Each folder of tests/formats is a run that an older jaxpar made, with the experiment's
file of that time and what that jaxpar got out of the run.
"""

import importlib
import json
import shutil
import warnings
from pathlib import Path

import pytest

from jaxpar import moved
from jaxpar.cli import main
from jaxpar.config import fingerprint
from jaxpar.data.source import Pairs, Text
from jaxpar.errors import UserError
from jaxpar.metrics.metrics_file import read_metrics
from jaxpar.run import formats
from jaxpar.run.directory import RunDir

FOLDER = Path(__file__).parent / "formats"
FORMATS = [path.name for path in sorted(FOLDER.iterdir())]
# As they were when their first runs were made: runs/STEM-FINGERPRINT.
FINGERPRINTS = {
    "converged": "cda5a8e3",
    "gpt2_124m": "5627c34d",
    "gpt3_175b": "77dd67bd",
    "llama_7b": "97f80c35",
    "quickstart": "14bde3cf",
    "quickstart_finetune": "d73d16df",
    "stdlib": "73ad5e53",
}
TUNE = """
from jaxpar import AdamW, Finetune, Layout, Text

experiment = Finetune(
    start_from="x",
    data=Text("synthetic", seq_len=64, batch_size=8),
    optim=AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=3),
    layout=Layout.parse("data=8"),
    num_steps=3,
    log_every=1,
)
"""


@pytest.fixture(params=FORMATS)
def old(request, tmp_path):
    """A copy of an old run, the file of its experiment, and what came of it then."""
    folder = FOLDER / request.param
    shutil.copytree(folder / "run", tmp_path / "run")
    expected = json.loads((folder / "expected.json").read_text())
    return str(tmp_path / "run"), str(folder / "run" / "experiment.py"), expected


def losses(run):
    rows = read_metrics(Path(run) / "metrics.jsonl")
    return {str(row["step"]): row["loss"] for row in rows if "loss" in row}


def answer_of(capsys, *args):
    assert main([*args, "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_an_old_run_is_resumed(old, capsys):
    run, file, expected = old
    # In the same run, but on a layout that all devices of the tests are needed for.
    flags = ["--layout", "fsdp=4,tensor=2", "--num-steps", "9", "--run-dir", run]
    assert main(["pretrain", file, *flags]) == 0
    assert f"Resuming {run} at step 6" in capsys.readouterr().out
    found = {step: loss for step, loss in losses(run).items() if int(step) > 6}
    assert found == pytest.approx(expected["resumed"], rel=1e-5)


def test_an_old_run_is_evaluated_and_generated_from(old, capsys):
    run, _, expected = old
    found = answer_of(capsys, "evaluate", run, "--layout", "data=1")
    # Newer versions report more than the one that wrote what is expected.
    shared = {name: found[name] for name in expected["evaluated"]}
    assert shared == pytest.approx(expected["evaluated"], rel=1e-5)
    how = ["--token-ids", "1,2,3", "--temperature", "0", "--max-new-tokens", "8"]
    assert answer_of(capsys, "generate", run, *how) == expected["generated"]


@pytest.mark.slow
def test_an_old_run_is_fine_tuned(old, tmp_path):
    run, _, expected = old
    file = tmp_path / "tune.py"
    file.write_text(TUNE)
    tuned = str(tmp_path / "tuned")
    assert main(["finetune", str(file), "--start-from", run, "--run-dir", tuned]) == 0
    assert losses(tuned) == pytest.approx(expected["tuned"], rel=1e-5)


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_an_experiment_keeps_its_directory(name):
    experiment = importlib.import_module(f"experiments.{name}").experiment
    assert fingerprint(experiment) == FINGERPRINTS[name]


def config_of(run):
    return json.loads((Path(run) / "config.json").read_text())


def test_a_run_keeps_the_format_it_was_started_in(old):
    run, file, _ = old
    assert "format" not in config_of(run)
    main(["pretrain", file, "--layout", "fsdp=4,tensor=2", "--run-dir", run])
    assert config_of(run)["format"] == 1


@pytest.mark.parametrize(
    ("data", "reading"),
    [
        ({"type": "Text", "source": "files:x.jsonl"}, ""),
        ({"type": "Text", "source": "files:texts/*"}, ""),
        ({"type": "Pairs", "source": "files:texts/*"}, ""),
        ({"type": "Pairs", "source": "files:x.jsonl"}, "text"),
        ({"type": "Text", "source": "stdlib"}, "text"),
        ({"type": "Text", "source": "tfds:wiki40b/en"}, "text"),
        ({"type": "Text"}, "text"),
    ],
)
def test_files_are_read_as_they_were_when_the_run_was_started(data, reading):
    started_in, config = formats.read_config({"type": "Pretrain", "data": data})
    assert started_in == 1
    assert config["data"].get("text_field", "text") == reading
    newer = {"type": "Pretrain", "data": data, "format": formats.FORMAT}
    assert formats.read_config(newer) == (
        formats.FORMAT,
        {"type": "Pretrain", "data": data},
    )


@pytest.mark.parametrize(
    ("kind", "pattern", "reading"),
    [
        ("Text", "x.jsonl", "text"),
        ("Text", "x.json", ""),
        ("Pairs", "y.ndjson", ""),
        ("Text", "z.txt", ""),
        ("Text", "gone.json", "text"),
    ],
)
def test_format_2_knew_records_by_two_names_alone(tmp_path, kind, pattern, reading):
    for name in ("x.jsonl", "x.json", "y.ndjson", "z.txt"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    data = {"type": kind, "source": f"files:{tmp_path}/{pattern}"}
    stored = {"type": "Pretrain", "data": data, "format": 2}
    started_in, config = formats.read_config(stored)
    assert started_in == 2
    assert config["data"].get("text_field", "text") == reading


@pytest.mark.parametrize(("then", "now"), [(0, 1), (-3, 1), (2, 2)])
def test_a_number_of_kept_checkpoints_that_was_legal_still_is(then, now):
    assert formats.read_config({"type": "Pretrain", "keep": then})[1]["keep"] == now


def test_a_run_that_was_started_on_raw_json_goes_on_with_it(old, tmp_path):
    run, _, _ = old
    config = config_of(run)
    config["data"]["source"] = f"files:{tmp_path}/x.jsonl"
    (Path(run) / "config.json").write_text(json.dumps(config))
    stored = RunDir(run).open()
    assert isinstance(stored.data, Text) and stored.data.text_field == ""
    import dataclasses

    today = dataclasses.replace(
        stored, data=dataclasses.replace(stored.data, text_field="text")
    )
    assert RunDir(run).resumed(today) == stored
    assert RunDir(tmp_path / "new").resumed(today) == today
    pairs = dataclasses.replace(today, data=Pairs(seq_len=64, batch_size=8))
    assert RunDir(run).resumed(pairs) == pairs


@pytest.mark.parametrize("number", [5, 0, "2", None])
def test_a_format_of_the_future_is_refused(old, number):
    run, _, _ = old
    text = json.dumps({**config_of(run), "format": number})
    (Path(run) / "config.json").write_text(text)
    with pytest.raises(UserError, match="reads formats 1 to 4: open it with a newer"):
        RunDir(run).open()


def old_names():
    """Every name that has another one now, and each old module with any name of its."""
    yield from (tuple(path.rsplit(".", 1)) for path in moved.RENAMED)
    for old, (new, *_) in moved.MOVED.items():
        names = vars(importlib.import_module(new))
        yield (
            old,
            next(n for n, v in names.items() if getattr(v, "__module__", "") == new),
        )


@pytest.mark.parametrize(("module", "name"), old_names())
def test_an_old_path_works_and_warns(module, name):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = getattr(importlib.import_module(module), name)
    assert found is not None
    (warning,) = [w for w in caught if "jaxpar" in str(w.message)]
    assert warning.category is DeprecationWarning
    assert warning.filename == __file__


def test_an_old_path_has_no_other_names():
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from jaxpar.partition.place import nothing  # noqa: F401


def test_a_run_of_format_3_goes_on_with_its_table_as_plain_text(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\na,1\n")
    (tmp_path / "a.txt").write_text("a line\n")
    for name, reading in (("a.csv", ""), ("a.txt", "text")):
        data = {"type": "Text", "source": f"files:{tmp_path}/{name}"}
        data |= {"text_field": "text"}
        _, found = formats.read_config({"type": "Pretrain", "data": data, "format": 3})
        assert found["data"]["text_field"] == reading
        _, found = formats.read_config({"type": "Pretrain", "data": data, "format": 4})
        assert found["data"]["text_field"] == "text"
