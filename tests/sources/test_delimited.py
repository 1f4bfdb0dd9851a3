"""CSV and TSV are tables with named columns, and never text as it stands.

pytest tests/sources/test_delimited.py
"""

import csv

import pytest

from jaxpar.data.source import Pairs, Text
from jaxpar.data.tokenizer import ByteTokenizer
from jaxpar.errors import UserError
from jaxpar.sources.delimited import DelimitedFiles
from jaxpar.sources.registry import open_source

ROWS = [(f'row {i}, "quoted"\nand a line → Öl', str(i % 2)) for i in range(2_300)]


def every(source, **how):
    documents = open_source(source, parts=("every",), **how).documents()["every"]
    return [document.text.decode() for document in documents]


def write(path, rows, names=("text", "label")):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows] if names else rows)
    return f"files:{path}"


def test_cells_with_quotes_commas_and_lines_are_read_exactly(tmp_path):
    source = write(tmp_path / "a.csv", ROWS)
    assert isinstance(open_source(source), DelimitedFiles)
    assert every(source) == [text for text, _ in ROWS]
    assert every(source, text_field="label") == [label for _, label in ROWS]


def test_a_tab_always_separates_and_a_quote_is_a_letter(tmp_path):
    (tmp_path / "a.tsv").write_text('label\ttext\n1\t"open, not closed\n0\tb "c" d\n')
    assert every(f"files:{tmp_path}/a.tsv") == ['"open, not closed', 'b "c" d']


def test_the_only_column_is_found_and_one_of_several_is_asked_for(tmp_path):
    assert every(write(tmp_path / "a.csv", [["x"], ["y"]], ["body"])) == ["x", "y"]
    source = write(tmp_path / "b.csv", ROWS, ["body", "label"])
    with pytest.raises(UserError, match=r"\['body', 'label'\].*--data.text-field 2"):
        Text(source, seq_len=8, batch_size=2).prepare()
    assert every(source, text_field="body")[0] == ROWS[0][0]


def test_of_a_file_without_names_a_column_is_read_by_its_number(tmp_path):
    source = write(tmp_path / "a.csv", ROWS, None)
    with pytest.raises(UserError, match="of a file without such a line"):
        open_source(source).documents()
    assert every(source, text_field="1") == [text for text, _ in ROWS]


def test_prompts_with_answers_are_examples(tmp_path):
    rows = [(f"{i} + {i} =", f" {2 * i}") for i in range(60)]
    source = write(tmp_path / "a.csv", rows, ("prompt", "answer"))
    data = Pairs(source, seq_len=32, batch_size=4)
    prepared = data.prepare(ByteTokenizer(), progress=False)
    assert len(prepared.train) + len(prepared.heldout) == 60


def test_the_data_are_those_of_the_text_whatever_reads_it(tmp_path):
    before = open_source(write(tmp_path / "a.csv", ROWS)).fingerprint()
    assert open_source(write(tmp_path / "a.csv", ROWS)).fingerprint() == before
    assert open_source(write(tmp_path / "a.csv", ROWS[1:])).fingerprint() != before


@pytest.mark.parametrize(
    "text, why",
    [
        ("text,label\na,1\nb\n", "line 3: it has 1 cells, and the first line 2"),
        ('text\n"never closed\n', "line 2: unexpected end of data"),
        ("a,a\n1,2\n", "two columns of one name"),
        ("text\n", "has no rows"),
        ("\n\n", r"a\.csv holds nothing but blank lines"),
        ("\ufeff", r"a\.csv holds nothing but blank lines"),
    ],
)
def test_what_is_no_table_is_refused_and_named(tmp_path, text, why):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=why):
        open_source(f"files:{tmp_path}/a.csv").documents()


def test_an_empty_text_field_reads_the_file_as_it_stands(tmp_path):
    (tmp_path / "a.csv").write_text("text\nx\n")
    assert every(f"files:{tmp_path}/a.csv", text_field="") == ["text\nx\n"]
