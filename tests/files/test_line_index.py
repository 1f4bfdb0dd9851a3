"""Where the records of a file are, found in blocks and kept on the disk."""

import random

import pytest

from jaxpar.data.source import Text
from jaxpar.data.tokenizer import ByteTokenizer
from jaxpar.errors import DataWentBad
from jaxpar.files import line_index
from jaxpar.files.line_index import index_of, lines_of
from jaxpar.files.scanned import scan

TEXTS = [
    b"a\nbc\n\ndef\n",
    b"\n\n\na",
    b" \t\n x\n\r\n\x0b\x0c\nlast",
    b"\n",
    b"one line without an end",
    "ä\n→ö\n  é".encode() * 3,
]


def naive(raw):
    """As a reader of lines finds them."""
    rows, start = [], 0
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            rows.append((start, number))
        start += len(line) + 1
    return rows


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def found(path):
    (file,) = scan({"a": path})
    return index_of(lines_of(path, "a"), file, is_array=False)


@pytest.mark.parametrize("stored_bytes", [0, 1 << 20])
@pytest.mark.parametrize("block_bytes", [1, 3, 1 << 20])
def test_lines_are_those_of_a_reader(tmp_path, monkeypatch, block_bytes, stored_bytes):
    monkeypatch.setattr(line_index, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(line_index, "STORED_BYTES", stored_bytes)
    monkeypatch.setattr(line_index, "BLOCK_ROWS", 2)
    rng = random.Random(0)
    drawn = [bytes(rng.choices(b"ab \n\r", k=rng.randrange(1, 40))) for _ in range(20)]
    for raw in [*TEXTS, *drawn]:
        path = tmp_path / "a"
        path.write_bytes(raw)
        index = found(path)
        assert [*index] == naive(raw)
        for start in range(len(raw) + 1):
            before = [row for row in naive(raw) if row[0] < start]
            assert index.place_of(start) == len(before)


def test_a_long_file_is_indexed_once(tmp_path, monkeypatch):
    monkeypatch.setattr(line_index, "STORED_BYTES", 1)
    path = tmp_path / "a"
    path.write_bytes(TEXTS[0])
    first = [*found(path)]

    def again(*_):
        raise AssertionError("It was read again.")
        yield

    (file,) = scan({"a": path})
    assert [*index_of(again(), file, is_array=False)] == first


def test_a_damaged_index_is_refused(tmp_path, monkeypatch, home):
    monkeypatch.setattr(line_index, "STORED_BYTES", 1)
    path = tmp_path / "a"
    path.write_bytes(TEXTS[0])
    found(path)
    (rows,) = home.glob(f"indices/*/{line_index.ROWS}")
    rows.write_bytes(bytes(len(rows.read_bytes())))
    with pytest.raises(DataWentBad, match="is damaged"):
        found(path)[0]


def test_records_are_the_same_from_a_stored_index(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"text": "{i} of some"}}\n\n' for i in range(200)))
    text = Text(f"files:{path}", seq_len=16, batch_size=2)
    prepared = text.prepare(ByteTokenizer(), progress=False)
    expected = [prepared.train[i].tokens.tolist() for i in range(len(prepared.train))]
    monkeypatch.setattr(line_index, "STORED_BYTES", 1)
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path / "another"))
    prepared = text.prepare(ByteTokenizer(), progress=False)
    assert [*(tmp_path / "another").glob("indices/*")]
    again = [prepared.train[i].tokens.tolist() for i in range(len(prepared.train))]
    assert again == expected
