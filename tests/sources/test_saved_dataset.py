"""What the library `datasets` saved is read by its splits, without that library.

pytest tests/sources/test_saved_dataset.py
"""

import json

import pyarrow
import pytest

from jaxpar.data.source import Pairs, Text, score
from jaxpar.data.tokenizer import ByteTokenizer
from jaxpar.errors import UserError
from jaxpar.sources.registry import find_kind, open_source
from jaxpar.sources.saved_dataset import SavedDataset


def saved(folder, columns, n_files=1):
    """A Dataset as `save_to_disk` writes it; a real one is read by the last test."""
    folder.mkdir(parents=True)
    table = pyarrow.table(columns)
    size = -(-table.num_rows // n_files)
    names = [f"data-{i:05}-of-{n_files:05}.arrow" for i in range(n_files)]
    for i, name in enumerate(names):
        with pyarrow.OSFile(str(folder / name), "wb") as sink:
            with pyarrow.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table.slice(i * size, size), max_chunksize=7)
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files}))
    (folder / "dataset_info.json").write_text("{}")
    return f"files:{folder}"


def texts(name, n):
    return [f"{name} {i}\nits second line\n" for i in range(n)]


def with_splits(folder, **splits):
    for name, n in splits.items():
        saved(folder / name, {"text": texts(name, n), "number": [*range(n)]})
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": [*splits]}))
    return f"files:{folder}"


def test_all_rows_of_all_files_are_read_in_order(tmp_path):
    source = saved(tmp_path / "a", {"text": texts("x", 100)}, n_files=3)
    assert find_kind(source)[0] is SavedDataset
    documents = open_source(source, parts=("every",)).documents()["every"]
    assert [d.text.decode() for d in documents] == texts("x", 100)
    assert documents[99].name == "data-00002-of-00003.arrow, row 31"
    parts = open_source(source).documents()
    assert len(parts["train"]) + len(parts["heldout"]) == 100


@pytest.mark.parametrize("other", ["validation", "test"])
def test_a_split_is_held_out(tmp_path, other):
    source = with_splits(tmp_path / "a", **{"test": 3, "train": 30, other: 4})
    parts = open_source(source).documents()
    assert [d.text.decode() for d in parts["train"]] == texts("train", 30)
    assert [d.text.decode() for d in parts["heldout"]] == texts(other, 4)
    prepared = Text(source, seq_len=16, batch_size=2).prepare(progress=False)
    assert prepared.description["train"]["documents"] == 30


def test_without_such_a_split_rows_of_train_are_held_out(tmp_path):
    parts = open_source(with_splits(tmp_path / "a", extra=9, train=300)).documents()
    found = [d.text.decode() for part in parts.values() for d in part]
    assert sorted(found) == sorted(texts("train", 300))
    with pytest.raises(UserError, match=r"splits are \['extra'\], and `train`"):
        open_source(with_splits(tmp_path / "b", extra=9)).documents()


def test_scoring_reads_every_split(tmp_path):
    windows = score(with_splits(tmp_path / "a", train=5, test=3), ByteTokenizer(), 16)
    assert windows.n_tokens == windows.n_bytes + 8


def test_prompts_with_answers_are_examples(tmp_path):
    columns = {"prompt": ["1 + 1 ="] * 60, "answer": [" 2"] * 60}
    data = Pairs(saved(tmp_path / "a", columns), seq_len=16, batch_size=2)
    prepared = data.prepare(ByteTokenizer(), progress=False)
    assert (len(prepared.train), len(prepared.heldout)) == (57, 3)


def test_a_damaged_one_is_refused_and_named(tmp_path):
    source = saved(tmp_path / "a", {"text": texts("x", 30)})
    (tmp_path / "a/data-00000-of-00001.arrow").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"\.arrow cannot be read as Arrow"):
        open_source(source).documents()
    for content in (
        '{"_data_files": 3}',
        "{",
        '{"_data_files": [], "_indices_data_files": [1]}',
    ):
        (tmp_path / "a/state.json").write_text(content)
        with pytest.raises(UserError, match="save it again"):
            open_source(source).documents()


def test_what_the_library_itself_saves_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": texts("x", 50), "n": [*range(50)]})
    chosen = made.filter(lambda row: row["n"] % 2 == 1)
    both = {"train": chosen, "test": made.select(range(3))}
    datasets.DatasetDict(both).save_to_disk(
        str(tmp_path / "a"), num_shards={"train": 2, "test": 1}
    )
    parts = open_source(f"files:{tmp_path}/a").documents()
    assert [d.text.decode() for d in parts["train"]] == texts("x", 50)[1::2]
    assert [d.text.decode() for d in parts["heldout"]] == texts("x", 3)
