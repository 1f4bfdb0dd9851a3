"""A fine-tune is the same run after a stop, and never another source's.

pytest tests/run/test_origin.py -k gone
"""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from jaxpar import finetune, pretrain
from jaxpar.config import fingerprint
from jaxpar.data.source import Text
from jaxpar.errors import UserError
from jaxpar.experiment import Finetune, Pretrain
from jaxpar.guard.sealed_json import write_json
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.run.directory import RunDir
from jaxpar.run.origin import Source, begun_from

DATA = Text("synthetic", seq_len=16, batch_size=8)
OPTIM = AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=10)
BASE = Pretrain(
    model=sizes.gpt(
        vocab_size=260, n_layers=1, d_embed=16, n_heads=2, max_positions=16
    ),
    data=DATA,
    optim=OPTIM,
    num_steps=2,
    eval_every=100,
    keep=9,
    layout=Layout.parse("data=8"),
)
TUNE = Finetune(
    start_from="base",
    data=DATA,
    optim=OPTIM,
    num_steps=2,
    eval_every=100,
    keep=9,
    layout=BASE.layout,
)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A folder with the run `base` of 2 steps, and with its fine-tune of 2 steps."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert pretrain.main(BASE, run_dir="base") == 0
        assert tune() == 0
    return home


@pytest.fixture
def home(pretrained, tmp_path, monkeypatch):
    shutil.copytree(pretrained, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def tune(num_steps=2, step=None, **fields):
    wanted = dataclasses.replace(TUNE, num_steps=num_steps, **fields)
    return finetune.main(wanted, stem="tune", step=step)


def tunes():
    """Each fine-tune, with the newest step it has saved and all its origins."""
    return {
        path.name: (
            max(int(step.name) for step in (path / "checkpoints").glob("[0-9]*")),
            [s["start_from"] for s in RunDir(path).receipt.sessions()],
        )
        for path in sorted(Path("runs").glob("tune-*"))
    }


def train_on(run="base", num_steps=4):
    assert (
        pretrain.main(dataclasses.replace(BASE, num_steps=num_steps), run_dir=run) == 0
    )


@pytest.mark.slow
def test_it_goes_on_although_its_source_has_trained_on(home, capsys):
    ((name, (_, [origin])),) = tunes().items()
    train_on()
    assert tune(4) == 0
    assert "Resuming" in capsys.readouterr().out
    assert tunes() == {name: (4, [origin, origin])}
    assert origin.endswith("@2")


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["gone", "moved", "without the step"])
def test_it_goes_on_without_its_source(home, capsys, fate):
    ((name, (_, [origin])),) = tunes().items()
    if fate == "without the step":
        train_on()
        shutil.rmtree("base/checkpoints/2")
    elif fate == "moved":
        shutil.move("base", "elsewhere")
    else:
        shutil.rmtree("base")
    assert tune(4) == 0
    assert ("is not needed" in capsys.readouterr().out) == (fate != "without the step")
    assert tunes() == {name: (4, [origin, origin])}
    if fate == "moved":
        assert tune(5, start_from="elsewhere") == 0
        assert tunes()[name][0] == 5


@pytest.mark.slow
def test_a_step_that_is_asked_for_by_number_is_a_fine_tune_of_its_own(home):
    (first,) = tunes()
    train_on()
    assert tune(step=4) == 0
    (other,) = tunes().keys() - {first}
    for step, name in ((None, first), (2, first), (4, other)):
        before = tunes()
        assert tune(before[name][0] + 1, step=step) == 0
        changed = {each for each in before if tunes()[each][0] != before[each][0]}
        assert changed == {name} and len(tunes()) == 2


@pytest.mark.slow
def test_another_source_gets_another_directory(home):
    (first,) = tunes()
    other = dataclasses.replace(BASE, seed=1)
    assert pretrain.main(other, run_dir="other") == 0
    assert tune(start_from="other") == 0
    assert len(tunes()) == 2
    with pytest.raises(UserError, match="--start-from is now"):
        finetune.main(
            dataclasses.replace(TUNE, start_from="other"), run_dir=f"runs/{first}"
        )


@pytest.mark.slow
def test_a_fine_tune_of_jaxpar_0_1_goes_on(home):
    ((name, _),) = tunes().items()
    receipt = RunDir(f"runs/{name}").receipt
    sessions = receipt.sessions()
    old = f"{fingerprint(BASE)}@2"
    del sessions[0]["asked_step"]
    write_json(receipt.path, {"sessions": [{**sessions[0], "start_from": old}]})
    train_on()
    assert tune(4) == 0
    assert tunes() == {name: (4, [old, old])}


@pytest.mark.slow
def test_before_anything_is_saved_it_starts_from_the_step_that_was_chosen(home):
    ((name, _),) = tunes().items()
    for path in ("checkpoints", "saved.json", "metrics.jsonl"):
        path = Path("runs", name, path)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    train_on()
    assert tune(2) == 0
    assert {origin[-2:] for origin in tunes()[name][1]} == {"@2"}


@pytest.mark.slow
def test_when_that_step_is_gone_before_anything_is_saved_it_says_so(home):
    ((name, _),) = tunes().items()
    for path in ("checkpoints", "saved.json", "metrics.jsonl"):
        path = Path("runs", name, path)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    train_on()
    shutil.rmtree("base/checkpoints/2")
    with pytest.raises(UserError, match="from step 2 of base and has saved nothing"):
        tune(2)


def written(path, experiment, **session):
    """A run of which only the configuration and the receipt are there."""
    run = RunDir(path)
    run.claim(experiment)
    run.receipt.add(**session)
    return Source(str(path))


def test_a_source_is_known_by_the_whole_chain_that_it_came_from(tmp_path):
    data = {"content": "c", "tokenizer": "t"}
    stage = dataclasses.replace(TUNE, model=BASE.model)
    first = written(tmp_path / "1", stage, data=data, start_from="a@1")
    again = written(tmp_path / "2", stage, data=data, start_from="a@1")
    assert first.identity == again.identity and len(first.identity) == 16
    for number, (facts, origin) in enumerate(
        [(data, "b@1"), (data, "a@2"), ({**data, "content": "d"}, "a@1"),
         ({**data, "tokenizer": "u"}, "a@1")]
    ):  # fmt: skip
        other = written(tmp_path / f"o{number}", stage, data=facts, start_from=origin)
        assert other.identity != first.identity
        assert fingerprint(other.experiment) == fingerprint(first.experiment)


def test_a_later_session_does_not_change_who_a_source_is(tmp_path):
    source = written(tmp_path / "1", BASE, data={"content": "c", "tokenizer": "t"})
    before = source.identity
    source.run_dir.receipt.add(data={"content": "by another definition"})
    assert Source(source.path).identity == before
    assert begun_from(source.run_dir) is None


@pytest.mark.slow
def test_the_receipt_keeps_as_what_the_step_was_asked_for(home):
    (name,) = tunes()
    session = json.loads(Path("runs", name, "receipt.json").read_text())["sessions"][0]
    assert session["asked_step"] is None
