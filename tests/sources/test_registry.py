"""A source is opened by the word, or by what its files' names end in."""

import pytest

from jaxpar.data.source import Pairs, Text, fetch
from jaxpar.data.tokenizer import ByteTokenizer
from jaxpar.errors import UserError
from jaxpar.sources.corpus import Corpus
from jaxpar.sources.delimited import DelimitedFiles
from jaxpar.sources.jsonl import JsonLines
from jaxpar.sources.parquet import ParquetFiles
from jaxpar.sources.registry import SOURCES, find_kind, open_source
from jaxpar.sources.saved_dataset import SavedDataset
from jaxpar.sources.stdlib import StandardLibrary
from jaxpar.sources.synthetic import Synthetic
from jaxpar.sources.text_files import TextFiles
from jaxpar.sources.tfds import PreparedDataset

SIZES = {"seq_len": 16, "batch_size": 2}


@pytest.fixture
def mixed(tmp_path):
    """Files of three kinds, and their folder."""
    (tmp_path / "a.txt").write_text("a line of text\n" * 60)
    (tmp_path / "b.jsonl").write_text('{"text": "a line"}\n' * 60)
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    return tmp_path


def test_every_kind_is_one_class_of_the_table():
    assert set(SOURCES.values()) == {
        StandardLibrary, Synthetic, PreparedDataset, TextFiles, JsonLines, ParquetFiles,
        DelimitedFiles, SavedDataset,
    }  # fmt: skip
    assert all(issubclass(kind, Corpus) for kind in SOURCES.values())


@pytest.mark.parametrize(
    ("source", "kind", "name"),
    [
        ("stdlib", StandardLibrary, ""),
        ("synthetic", Synthetic, ""),
        ("tfds:wiki40b/en:1.3.0", PreparedDataset, "wiki40b/en:1.3.0"),
    ],
)
def test_a_word_names_the_kind_and_what_follows_is_left(source, kind, name):
    assert find_kind(source) == (kind, name)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("a.txt", TextFiles),
        ("b.jsonl", JsonLines),
        ("B.JSONL", JsonLines),
        ("c.parquet", ParquetFiles),
        ("c.Parquet", ParquetFiles),
        ("jsonl", TextFiles),
        ("d.jsonl.txt", TextFiles),
    ],
)
def test_files_are_read_by_what_their_names_end_in(tmp_path, file, kind):
    (tmp_path / file).write_text("x")
    assert find_kind(f"files:{tmp_path}/*")[0] is kind
    assert find_kind(f"files:{tmp_path}/*", text_field="")[0] is TextFiles


def test_lines_in_a_file_whose_suffix_is_in_capitals_are_read(tmp_path):
    (tmp_path / "A.JSONL").write_text('{"text": "a line"}\n' * 60)
    corpus = open_source(f"files:{tmp_path}/*.JSONL")
    assert corpus.documents()["train"][0].text == b"a line"


def test_files_of_several_kinds_are_refused_and_named(mixed):
    with pytest.raises(UserError, match=r"several kinds \(a\.txt, b\.jsonl\).*\"\""):
        open_source(f"files:{mixed}/[ab]*")
    with pytest.raises(UserError, match=r"\(b\.jsonl, c\.parquet\)"):
        open_source(f"files:{mixed}/[bc]*")


@pytest.mark.parametrize("data", [Text, Pairs])
def test_an_empty_text_field_reads_files_of_several_kinds_as_plain_text(mixed, data):
    source = data(f"files:{mixed}/[ab]*", text_field="", **SIZES)
    source.fetch()
    prepared = source.prepare(ByteTokenizer(), progress=False)
    assert prepared.description["train"]["documents"] == 2
    text = prepared.train[len(prepared.train) - 1].tokens.astype("uint8").tobytes()
    assert b'"text": ' in text


def test_fetching_needs_the_files_to_be_here(mixed):
    fetch(f"files:{mixed}/a.txt")
    with pytest.raises(UserError, match="matches no file"):
        fetch(f"files:{mixed}/nothing*")
