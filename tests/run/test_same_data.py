"""Data has changed only if its bytes have, whatever version of a library reads it.

pytest tests/run/test_same_data.py
"""

import dataclasses
import platform

import pytest

from jaxpar import cache, evaluate, pretrain
from jaxpar.data import prepare
from jaxpar.data.source import Text
from jaxpar.data.tokenizer import BPE
from jaxpar.errors import UserError
from jaxpar.experiment import Pretrain
from jaxpar.guard.sealed_json import write_json
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.run.directory import RunDir
from jaxpar.sources.registry import open_source

LINES = [f"line {i} of a small text\n" for i in range(2_000)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(LINES))
    return path


def prepared(file, **fields):
    data = Text(f"files:{file}", seq_len=16, batch_size=8, **fields)
    return data.prepare(progress=False)


@pytest.fixture
def newer(monkeypatch):
    """Other versions of the libraries that read data are installed."""
    monkeypatch.setattr(
        "importlib.metadata.version", lambda name, was=cache.importlib.metadata.version:
        "99.1" if name in ("tensorflow-datasets", "array-record", "pyarrow")
        else was(name),
    )  # fmt: skip


def receipt_of(folder, **session):
    receipt = RunDir(folder / "run").receipt
    receipt.path.parent.mkdir(exist_ok=True)
    write_json(receipt.path, {"sessions": [session]})
    return receipt


def by_jaxpar_0_1(found):
    """What jaxpar 0.1 wrote into a receipt of the same data."""
    data = {**found.description, "content": found.older_content({})}
    del data["content_definition"]
    return data


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".parquet"])
def test_an_upgraded_library_is_no_other_content(tmp_path, request, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"text": LINES}), path)
    elif suffix == ".jsonl":
        path.write_text('{"text": "a"}\n' * 60)
    else:
        path.write_text("".join(LINES))
    before = open_source(f"files:{path}")
    content, named = before.fingerprint(), before.versioned_fingerprint()
    request.getfixturevalue("newer")
    after = open_source(f"files:{path}")
    assert after.fingerprint() == content
    assert after.versioned_fingerprint() != named
    installed = {
        "tensorflow-datasets": "99.1",
        "array-record": "99.1",
        "pyarrow": "99.1",
    }
    assert before.versioned_fingerprint(installed) == after.versioned_fingerprint()


def test_a_receipt_is_held_to_the_bytes_and_not_to_versions(tmp_path, file, newer):
    receipt = receipt_of(tmp_path, data=prepared(file).description)
    receipt.require_same(prepared(file), None)
    file.write_text("".join(LINES).replace("line 7 ", "line 8 "))
    with pytest.raises(UserError, match="the content of the data has changed"):
        receipt.require_same(prepared(file), None)


def test_a_receipt_of_0_1_is_compared_by_its_own_definition(tmp_path, file, capsys):
    receipt = receipt_of(tmp_path, data=by_jaxpar_0_1(prepared(file)))
    data = prepared(file)
    capsys.readouterr()
    receipt.require_same(data, None)
    assert capsys.readouterr().err == ""


def test_a_receipt_of_0_1_goes_on_after_an_upgrade_and_says_so(
    tmp_path, file, request, capsys
):
    receipt = receipt_of(tmp_path, data=by_jaxpar_0_1(prepared(file)))
    request.getfixturevalue("newer")
    receipt.require_same(prepared(file), None)
    assert "are taken for the same" in capsys.readouterr().err
    file.write_text("".join(LINES[:-100]))
    with pytest.raises(UserError, match="the content of the data has changed"):
        receipt.require_same(prepared(file), None)


def test_versions_that_a_receipt_records_are_those_it_is_compared_by(
    tmp_path, file, request, capsys
):
    versions = cache.versions("tensorflow-datasets", "array-record")
    data = by_jaxpar_0_1(prepared(file))
    receipt = receipt_of(tmp_path, data=data, versions=versions)
    request.getfixturevalue("newer")
    receipt.require_same(prepared(file), None)
    assert capsys.readouterr().err == ""


def test_a_receipt_of_0_1_on_data_that_has_no_versions_is_exact(tmp_path):
    found = Text("synthetic", seq_len=16, batch_size=8).prepare(progress=False)
    data = by_jaxpar_0_1(found)
    receipt_of(tmp_path, data=data).require_same(found, None)
    with pytest.raises(UserError, match="the content of the data has changed"):
        receipt_of(tmp_path, data={**data, "content": "0"}).require_same(found, None)


def test_another_python_is_named_where_its_library_is_the_text(tmp_path):
    found = Text("stdlib", seq_len=16, batch_size=8).prepare(progress=False)
    data = {**found.description, "content": "0"}
    receipt = receipt_of(tmp_path, data=data, python="3.99.1")
    said = rf"library of Python 3.99.1, and that of Python {platform.python_version()}"
    with pytest.raises(UserError, match=said):
        receipt.require_same(found, None)


@pytest.mark.slow
def test_evaluate_refuses_what_a_resume_would(tmp_path, file):
    experiment = Pretrain(
        model=sizes.gpt(
            vocab_size=260, n_layers=1, d_embed=16, n_heads=2, max_positions=16
        ),
        data=Text(f"files:{file}", seq_len=16, batch_size=8),
        optim=AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=10),
        num_steps=1,
        layout=Layout.parse("data=8"),
    )
    run = tmp_path / "run"
    assert pretrain.main(experiment, run_dir=run) == 0
    before = evaluate.main(run)
    file.write_text("".join(LINES[:1_500]))
    with pytest.raises(UserError, match=r"content .* has changed.*--data\.source"):
        evaluate.main(run)
    assert evaluate.main(run, source=f"files:{file}")["bytes"] > before["bytes"]
    longer = dataclasses.replace(experiment, num_steps=2)
    with pytest.raises(UserError, match=r"content .* has changed.*--run-dir"):
        pretrain.main(longer, run_dir=run)


def test_a_resumed_run_goes_on_with_the_tokenizer_that_it_learned(
    file, tmp_path, monkeypatch
):
    """Also where the same text would give another now, and its cache is gone."""
    run = Pretrain(
        model=sizes.llama(
            vocab_size=300, n_layers=1, d_embed=16, n_heads=2, n_kv_heads=2, d_mlp=32,
            max_positions=16,
        ),
        data=Text(f"files:{file}", seq_len=16, batch_size=8, tokenizer=BPE(300)),
        optim=AdamW(peak_lr=1e-2, warmup_steps=1, decay_steps=4),
        num_steps=2,
        layout=Layout.parse("data=8"),
    )  # fmt: skip
    assert pretrain.main(run, run_dir=tmp_path / "run") == 0
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path / "emptied"))
    monkeypatch.setattr(
        prepare, "texts_to_learn", lambda n, read, most: [b"quite other words " * 99]
    )
    longer = dataclasses.replace(run, num_steps=3)
    assert pretrain.main(longer, run_dir=tmp_path / "run") == 0
    # What is kept and is no longer the run's is not taken: the text is asked again.
    (tmp_path / "run" / "tokenizer" / "tokenizer.json").write_text("{}")
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path / "emptied again"))
    longer = dataclasses.replace(run, num_steps=4)
    with pytest.raises(UserError, match="the tokenizer of the data has changed"):
        pretrain.main(longer, run_dir=tmp_path / "run")
