"""Prepared TFDS datasets are opened by name, and never run anyone's code."""

import json
import pathlib
import socket
import sys
import tomllib

import pytest

from jaxpar.data.source import Text, fetch, score
from jaxpar.data.tokenizer import ByteTokenizer
from jaxpar.errors import UserError
from jaxpar.sources.registry import open_source

SIZES = {"seq_len": 16, "batch_size": 2}


def made(folder, name="some_text", **splits):
    """A dataset of numbered documents under `folder`, as TFDS itself writes it."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import registered

    with registered.skip_registration():

        class SomeText(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {"text": tfds.features.Text()}
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                return {k: self._generate_examples(k, n) for k, n in splits.items()}

            def _generate_examples(self, split, n):
                for i in range(n):
                    yield i, {"text": f"{split} document number {i}\nits second line\n"}

    SomeText.name = name
    builder = SomeText(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return folder / name / "1.0.0"


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    return tmp_path


def changed(path, file, change):
    content = json.loads((path / file).read_text())
    change(content)
    (path / file).write_text(json.dumps(content))


@pytest.mark.parametrize("name", ["some_text", "some_text:1.0.0", "{home}/some_text"])
def test_a_prepared_dataset_is_opened_by_name_version_or_directory(home, name):
    made(home, train=30, validation=4, test=3)
    source = f"tfds:{name.format(home=home)}"
    parts = open_source(source).documents()
    assert [len(parts["train"]), len(parts["heldout"])] == [30, 4]
    assert parts["heldout"][0].text.startswith(b"validation document")
    assert Text(source, **SIZES).prepare().description["train"]["documents"] == 30


def test_test_is_held_out_where_there_is_no_validation(home):
    made(home, train=30, test=3)
    assert len(open_source("tfds:some_text").documents()["heldout"]) == 3


def test_documents_are_held_out_by_number_where_there_is_one_split(home):
    made(home, train=300)
    parts = open_source("tfds:some_text").documents()
    assert len(parts["train"]) + len(parts["heldout"]) == 300
    assert 5 < len(parts["heldout"]) < 30
    held = {document.text for document in parts["heldout"]}
    assert not held & {document.text for document in parts["train"]}


def test_few_documents_hold_out_their_ends(home):
    made(home, train=3)
    parts = open_source("tfds:some_text").documents()
    assert [document.text for document in parts["heldout"]] == [
        b"its second line\n"
    ] * 3


def test_scoring_reads_every_split(home):
    made(home, train=5, validation=4, test=3)
    windows = score("tfds:some_text", ByteTokenizer(), 16)
    assert windows.n_tokens == windows.n_bytes + 12


def test_a_dataset_that_is_not_prepared_is_refused_at_once(home, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: asked.append(args))
    with pytest.raises(UserError, match="jaxpar data prepare EXPERIMENT --data.source"):
        Text("tfds:wiki40b/en", **SIZES).prepare()
    assert not asked


@pytest.mark.parametrize("name", ["../secret", "/nowhere", "a b", "a/../b", "x:y"])
def test_a_name_that_is_none_is_refused(home, name):
    with pytest.raises(UserError, match="neither a prepared directory nor"):
        Text(f"tfds:{name}", **SIZES).prepare()


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_a_class_outside_tfds_is_never_imported(home, monkeypatch, key):
    path = made(home, train=30)
    (home / "evilmod.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(str(home))

    def poison(content):
        content.pop("pythonClassName")
        content[key] = "evilmod.X"

    changed(path, "features.json", poison)
    with pytest.raises(UserError, match="evilmod.X"):
        Text("tfds:some_text", **SIZES).prepare()
    assert "evilmod" not in sys.modules


def test_a_dataset_of_tfrecords_is_refused_with_the_remedy(home):
    path = made(home, train=30)
    changed(path, "dataset_info.json", lambda c: c.update(fileFormat="tfrecord"))
    with pytest.raises(UserError, match="prepared as tfrecord; re-prepare"):
        Text("tfds:some_text", **SIZES).prepare()


def test_a_damaged_record_is_refused_and_named(home):
    path = made(home, train=300)
    (record,) = path.glob("*.array_record*")
    raw = bytearray(record.read_bytes())
    # The file is padded with zeros, whose change nobody could notice.
    raw[[i for i, byte in enumerate(raw) if byte][len(raw) // 400]] ^= 1
    record.write_bytes(raw)
    with pytest.raises(UserError, match=r"1\.0\.0.*cannot be (read|opened)"):
        Text("tfds:some_text", **SIZES).prepare()


def test_an_incomplete_dataset_is_refused(home):
    path = made(home, train=30)
    (path / "features.json").unlink()
    with pytest.raises(UserError, match=r"features\.json cannot be read"):
        Text("tfds:some_text", **SIZES).prepare()


def test_a_dataset_without_training_examples_is_refused(home):
    made(home, test=3)
    with pytest.raises(UserError, match="no examples to learn from"):
        Text("tfds:some_text", **SIZES).prepare()


def test_fetching_looks_at_no_network_where_the_dataset_is_here(home):
    made(home, train=3)
    fetch("tfds:some_text")
    fetch("stdlib")


def test_fetching_a_name_that_tfds_does_not_know_is_refused(home):
    with pytest.raises(UserError, match="could not be prepared"):
        fetch("tfds:no_such_dataset_at_all")


@pytest.mark.parametrize(
    "error, remedy",
    [
        (ModuleNotFoundError(name="apache_beam.io"), "in an environment of its own"),
        (ModuleNotFoundError(name="tensorflow"), r"\.\[tfds-full\]"),
        (ImportError("Tensorflow has not been installed."), r"\.\[tfds-full\]"),
        (ModuleNotFoundError(name="bs4"), "`pip install bs4`"),
        (ConnectionError("no route"), "Check the name and the network"),
    ],
)
def test_what_a_builder_misses_is_named_with_what_brings_it(
    home, monkeypatch, error, remedy
):
    import tensorflow_datasets as tfds

    def builder(*_, **__):
        raise error

    monkeypatch.setattr(tfds, "builder", builder)
    with pytest.raises(UserError, match=remedy):
        fetch("tfds:lm1b")


def test_tfds_itself_has_all_that_it_needs_to_fetch():
    """It does not declare `importlib_resources`, which every download needs."""
    text = pathlib.Path("pyproject.toml").read_text()
    dependencies = tomllib.loads(text)["project"]["dependencies"]
    assert any(each.startswith("importlib_resources") for each in dependencies)
