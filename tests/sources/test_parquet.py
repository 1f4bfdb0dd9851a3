"""Rows of Parquet files are documents or examples; one that is neither is named."""

import pyarrow as pa
import pytest
from pyarrow import parquet

from jaxpar.data.source import Pairs, Text, score
from jaxpar.data.tokenizer import ByteTokenizer
from jaxpar.errors import UserError
from jaxpar.files import split
from jaxpar.sources.parquet import ParquetFiles
from jaxpar.sources.registry import open_source

SIZES = {"seq_len": 16, "batch_size": 2}
N = 120
TEXTS = [f"text {i}" for i in range(N)]
PAIRS = {"prompt": ["1 + 1 ="] * N, "answer": [" 2"] * N}
HELD = [i for i in range(N) if split.held_out(str(i))]


def write(path, columns, **settings):
    parquet.write_table(pa.table(columns), path, **settings)
    return f"files:{path}"


def documents(source, part="train", **settings):
    return [d.text.decode() for d in open_source(source, **settings).documents()[part]]


def every(source):
    return documents(source, "every", parts=("every",))


def refused(source, words, data=Text, **settings):
    with pytest.raises(UserError, match=words) as caught:
        data(source, **SIZES, **settings).prepare(ByteTokenizer(), progress=False)
    assert "\n" not in str(caught.value)


def test_the_text_is_in_the_column_named_text(tmp_path):
    columns = {"id": TEXTS, "text": [f"{t}!" for t in TEXTS], "n": range(N)}
    source = write(tmp_path / "a.parquet", columns)
    assert every(source) == [f"{text}!" for text in TEXTS]
    prepared = Text(source, **SIZES).prepare(progress=False)
    assert prepared.description["train"]["documents"] == N - len(HELD)


def test_another_column_is_read_where_it_is_named(tmp_path):
    columns = {"text": ["no"] * N, "body": TEXTS}
    source = write(tmp_path / "a.parquet", columns)
    assert documents(source, text_field="body")[0] == "text 0"
    prepared = Text(source, text_field="body", **SIZES).prepare(progress=False)
    assert b"text 0" in prepared.train[0].tokens.astype("uint8").tobytes()


def test_the_only_column_of_text_is_found(tmp_path):
    columns = {"n": range(N), "body": TEXTS, "blob": [b"x"] * N}
    assert every(write(tmp_path / "a.parquet", columns)) == TEXTS


def test_several_columns_none_of_them_named_text_are_refused(tmp_path):
    columns = {"title": TEXTS, "body": TEXTS, "n": range(N)}
    words = (
        r"a\.parquet has .*'text'.*\['body', 'title'\], no text in \['n'\].*--data.t"
    )
    refused(write(tmp_path / "a.parquet", columns), words)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXTS, pa.large_string()),
        pa.array(TEXTS, pa.string_view()),
        pa.array(TEXTS).dictionary_encode(),
        pa.array(TEXTS, pa.large_string()).dictionary_encode(),
    ],
    ids=lambda column: str(column.type).partition("<")[0],
)
def test_every_type_of_strings_is_text(tmp_path, column):
    assert every(write(tmp_path / "a.parquet", {"text": column})) == TEXTS


@pytest.mark.parametrize(
    "column",
    [
        pa.array(range(N)),
        pa.array([[text] for text in TEXTS]),
        pa.array([{"text": text} for text in TEXTS]),
        pa.array([text.encode() for text in TEXTS]),
        pa.array(range(N)).dictionary_encode(),
        pa.nulls(N),
    ],
    ids=lambda column: str(column.type).partition("<")[0],
)
def test_a_column_of_anything_else_is_not(tmp_path, column):
    source = write(tmp_path / "a.parquet", {"text": column})
    refused(source, r"a\.parquet has no text in .*'text'.*, no text in \['text'\]")


def test_prompts_with_answers_are_examples_and_no_text(tmp_path):
    source = write(tmp_path / "a.parquet", PAIRS)
    corpus = open_source(source)
    assert corpus.has_examples and corpus.has_only_examples
    refused(source, r"prompts with answers: fine-tune on them \(Pairs\)")
    prepared = Pairs(source, **SIZES).prepare(ByteTokenizer(), progress=False)
    assert prepared.train.n_bytes == (N - len(HELD)) * 2
    assert prepared.heldout.n_bytes == len(HELD) * 2


def test_rows_with_both_are_examples_to_pairs_and_documents_to_text(tmp_path):
    source = write(tmp_path / "a.parquet", {**PAIRS, "text": TEXTS})
    corpus = open_source(source)
    assert corpus.has_examples and not corpus.has_only_examples
    pairs = Pairs(source, **SIZES).prepare(ByteTokenizer(), progress=False)
    text = Text(source, **SIZES).prepare(progress=False)
    assert pairs.train.n_bytes == (N - len(HELD)) * 2
    assert text.fingerprint != pairs.fingerprint


@pytest.mark.parametrize("number", [7, HELD[0]])
def test_a_null_is_refused_with_file_and_row(tmp_path, number):
    texts = [None if i == number else text for i, text in enumerate(TEXTS)]
    source = write(tmp_path / "a.parquet", {"text": texts}, row_group_size=5)
    refused(source, rf"a\.parquet, row {number} has no text 'text', but null")
    source = write(tmp_path / "b.parquet", {"prompt": TEXTS, "answer": texts})
    refused(source, rf"b\.parquet, row {number} has no text 'answer', but null", Pairs)


def test_rows_are_counted_from_the_start_of_their_own_file(tmp_path):
    write(tmp_path / "a.parquet", {"text": TEXTS[:33]}, row_group_size=10)
    texts = [*TEXTS[:12], None, *TEXTS[13:]]
    write(tmp_path / "b.parquet", {"text": texts}, row_group_size=10)
    refused(f"files:{tmp_path}/*.parquet", r"b\.parquet, row 12 has no text")


def test_text_that_is_not_utf8_is_refused_with_file_and_row(tmp_path):
    raw = pa.array([b"good"] * 30 + [b"good \xff bad"] + [b"good"] * (N - 31))
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    source = write(tmp_path / "a.parquet", {"text": text})
    refused(source, r"a\.parquet, row 30 is not UTF-8 at byte 5")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all" * 9])
def test_a_file_that_is_no_parquet_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    refused(f"files:{tmp_path}/a.parquet", r"a\.parquet cannot be read as Parquet: \w+")


def test_a_damaged_row_group_is_refused_in_one_line(tmp_path):
    source = write(tmp_path / "a.parquet", {"text": TEXTS}, use_dictionary=False)
    raw = bytearray((tmp_path / "a.parquet").read_bytes())
    raw[4:40] = b"\xff" * 36
    (tmp_path / "a.parquet").write_bytes(raw)
    refused(source, r"a\.parquet cannot be read as Parquet: \w+")


def test_several_files_and_row_groups_are_one_sequence(tmp_path):
    for name, first in (("b", 40), ("a", 0), ("c", 80)):
        columns = {"text": TEXTS[first : first + 40]}
        write(tmp_path / f"{name}.parquet", columns, row_group_size=7)
    corpus = open_source(f"files:{tmp_path}/*.parquet", parts=("every",))
    found = corpus.documents()["every"]
    assert [document.text.decode() for document in found] == TEXTS
    assert found[47].name == "b.parquet, row 7"
    assert found[-1].text.decode() == TEXTS[-1]
    with pytest.raises(IndexError):
        found[N]


def test_a_row_group_is_read_once_for_all_its_rows(tmp_path, monkeypatch):
    source = write(tmp_path / "a.parquet", {"text": TEXTS}, row_group_size=N // 3)
    read, numbers = parquet.ParquetFile.read_row_group, []

    def counted(file, number, *more):
        numbers.append(number)
        return read(file, number, *more)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    assert len(every(source)) == N
    assert numbers == [0, 1, 2]


def test_rows_are_held_out_by_the_hash_of_their_numbers(tmp_path):
    write(tmp_path / "a.parquet", {"text": TEXTS[:25]})
    write(tmp_path / "b.parquet", {"text": TEXTS[25:]})
    source = f"files:{tmp_path}/*.parquet"
    assert HELD and documents(source, "heldout") == [TEXTS[i] for i in HELD]
    rest = [text for i, text in enumerate(TEXTS) if i not in HELD]
    assert documents(source, "train") == rest


def test_of_few_rows_the_end_of_each_is_held_out(tmp_path):
    source = write(tmp_path / "a.parquet", {"text": ["first\nlast"] * 5})
    assert documents(source, "train") == ["first\n"] * 5
    assert documents(source, "heldout") == ["last"] * 5


def test_of_few_examples_the_last_ones_are_held_out(tmp_path):
    columns = {"prompt": TEXTS[:60], "answer": TEXTS[:60]}
    corpus = open_source(write(tmp_path / "a.parquet", columns))
    heldout = [example.answer for example in corpus.examples("heldout")]
    assert heldout == [b"text 57", b"text 58", b"text 59"]
    assert len(corpus.examples("train")) == corpus.n_records("train") == 57
    source = write(tmp_path / "b.parquet", {"prompt": ["a"], "answer": ["b"]})
    refused(source, "leaves nothing to train on", Pairs)


def test_files_and_row_groups_without_rows_are_skipped(tmp_path):
    write(tmp_path / "a.parquet", {"text": pa.nulls(0)})
    write(tmp_path / "b.parquet", {"text": TEXTS})
    assert every(f"files:{tmp_path}/*.parquet") == TEXTS
    for data in (Text, Pairs):
        refused(f"files:{tmp_path}/a.parquet", "has no rows", data)


def test_files_may_differ_in_other_columns(tmp_path):
    write(tmp_path / "a.parquet", {"text": TEXTS[:30], "n": [*range(30)]})
    write(tmp_path / "b.parquet", {"id": TEXTS[30:], "text": TEXTS[30:]})
    assert every(f"files:{tmp_path}/*.parquet") == TEXTS


def test_a_file_without_the_column_that_another_has_is_named(tmp_path):
    write(tmp_path / "a.parquet", {"text": TEXTS})
    write(tmp_path / "b.parquet", PAIRS)
    source = f"files:{tmp_path}/*.parquet"
    for data in (Text, Pairs):
        refused(source, r"b\.parquet has no text in a column 'text', and a\.par", data)


def test_files_without_a_common_column_of_text_are_refused(tmp_path):
    write(tmp_path / "a.parquet", {"body": TEXTS})
    write(tmp_path / "b.parquet", {"content": TEXTS})
    source = f"files:{tmp_path}/*.parquet"
    refused(source, r"parquet, in every file, has no text in a field 'text'; .* \[\]")


def test_scoring_counts_answers_of_examples_and_every_byte_of_documents(tmp_path):
    windows = score(write(tmp_path / "a.parquet", PAIRS), ByteTokenizer(), 16)
    assert (windows.n_bytes, windows.n_tokens) == (N * 2, N * 3)
    both = write(tmp_path / "b.parquet", {**PAIRS, "text": ["abcde"] * N})
    windows = score(both, ByteTokenizer(), 16)
    assert (windows.n_bytes, windows.n_tokens) == (N * 5, N * 6)


def test_the_fingerprint_changes_with_a_byte_with_the_field_and_with_the_parts(
    tmp_path,
):
    def fingerprint(**settings):
        return open_source(f"files:{tmp_path}/a.parquet", **settings).fingerprint()

    write(tmp_path / "a.parquet", {"text": TEXTS, "body": TEXTS})
    before = fingerprint()
    assert fingerprint() == before
    others = {fingerprint(text_field="body"), fingerprint(parts=("every",))}
    write(tmp_path / "a.parquet", {"text": TEXTS, "body": [*TEXTS[1:], "x"]})
    assert len({before, *others, fingerprint()}) == 4


def test_files_are_hashed_once(tmp_path, monkeypatch):
    corpus = open_source(write(tmp_path / "a.parquet", {"text": TEXTS}))
    assert isinstance(corpus, ParquetFiles)
    before = corpus.fingerprint()
    (tmp_path / "a.parquet").unlink()
    assert corpus.fingerprint() == before


def test_unicode_and_newlines_survive_exactly(tmp_path):
    text = "Öl → \U0001f600\n\r\n\ttwo\u2028lines\x00"
    assert every(write(tmp_path / "a.parquet", {"text": [text] * 3})) == [text] * 3
