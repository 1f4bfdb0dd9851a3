"""JSON is recognised by what a file holds, whatever the file is called."""

import json

import pytest

from jaxpar.data.source import Pairs, Text, score
from jaxpar.data.tokenizer import ByteTokenizer
from jaxpar.errors import UserError
from jaxpar.files import json_array, json_records, line_index
from jaxpar.files.json_records import ARRAY, LINES, OBJECT, form_of
from jaxpar.sources.jsonl import JsonLines
from jaxpar.sources.registry import find_kind, named_as_records, open_source
from jaxpar.sources.text_files import TextFiles

SIZES = {"seq_len": 32, "batch_size": 2}
PAIRS = [{"prompt": f"PROMPT {i} ", "answer": f"answer {i}"} for i in range(60)]
ON_LINES = "".join(json.dumps(pair) + "\n" for pair in PAIRS)
NAMES = ["a.jsonl", "a.JSONL", "a.ndjson", "a.NDJSON", "a.json", "a.Json", "a.txt", "a"]
WRITTEN = {
    "lines": ON_LINES,
    "array": json.dumps(PAIRS),
    "indented array": "\ufeff \n" + json.dumps(PAIRS, indent=2) + "\n\n",
    "array of lines": "[\n" + ",\n".join(map(json.dumps, PAIRS)) + "\n]\n",
}


def scored(source):
    """The bytes that training and evaluation of pairs score, and both counts."""
    data = Pairs(source, **SIZES).prepare(ByteTokenizer(), progress=False)
    text = b""
    for windows in (data.train, data.heldout):
        for window in (windows[i] for i in range(len(windows))):
            kept = window.tokens[(window.weights > 0) & (window.tokens < 256)]
            text += kept.astype("uint8").tobytes()
    return text.decode(), len(data.train), len(data.heldout)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("written", WRITTEN)
def test_pairs_are_pairs_by_any_name_and_in_any_form(tmp_path, name, written):
    (tmp_path / name).write_text(WRITTEN[written], encoding="utf-8")
    text, n_train, n_heldout = scored(f"files:{tmp_path}/{name}")
    assert text == "".join(pair["answer"] for pair in PAIRS)
    assert n_train + n_heldout == 60 and 1 <= n_heldout <= 4


@pytest.mark.parametrize("pattern", ["", "/", "/*", "/**/*", "/[ab].*"])
def test_a_folder_and_a_mix_of_names_are_records(tmp_path, pattern):
    for name, text in zip(
        ["a.jsonl", "b.txt", "b.json"], WRITTEN.values(), strict=False
    ):
        (tmp_path / name).write_text(text)
    (tmp_path / "b.empty").write_text("")
    text, n_train, n_heldout = scored(f"files:{tmp_path}{pattern}")
    assert "PROMPT" not in text and n_train + n_heldout == 180


def test_a_folder_of_folders_is_read(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}").mkdir()
        (tmp_path / f"{i}" / "a.txt").write_text("a line of text\n" * 40)
    documents = open_source(f"files:{tmp_path}").documents()
    assert [d.name for d in documents["train"]] == ["0/a.txt", "1/a.txt", "2/a.txt"]


def test_what_a_name_does_not_say_is_printed_once(tmp_path, capsys):
    source = f"files:{tmp_path}/data.txt"
    (tmp_path / "data.txt").write_text(ON_LINES)
    for _ in range(2):
        assert find_kind(source)[0] is JsonLines
    assert find_kind(source, text_field="")[0] is TextFiles
    said = f"{source}: data.txt begins with records of JSON, and is read as such; "
    assert capsys.readouterr().err.count(said) == 1


def test_records_among_texts_are_refused_with_the_reason(tmp_path):
    (tmp_path / "a.txt").write_text("a line of text\n" * 40)
    (tmp_path / "b.log").write_text(ON_LINES)
    words = (
        r"several kinds \(a\.txt, b\.log; b\.log begins with records of JSON\).*\"\""
    )
    with pytest.raises(UserError, match=words):
        open_source(f"files:{tmp_path}/*")


@pytest.mark.parametrize(
    "text",
    [
        "Prose.\n" + ON_LINES,
        "{curly} prose\n" * 30,
        '{"a": 1}\nand prose about it\n' * 30,
        '{"quoted"} prose\n',
        "[1] a reference\n[2] another\n",
        "[{not json}]\n",
        '[["nested"], 1]\n',
        '"a string"\n',
        "{}\n",
        "\n\n",
        "\x00\x01",
        '{\n "a": 1,\n "b": {"c": "d"}\n}\n',
        # Prose whose first line is longer than what is looked at.
        "{" + "word " * json_records.HEAD_BYTES,
    ],
)
def test_prose_is_never_taken_for_records(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert form_of(tmp_path / "a.txt") not in (LINES, ARRAY)
    assert find_kind(f"files:{tmp_path}/a.txt")[0] is TextFiles


@pytest.mark.parametrize(
    "n", [10, json_records.HEAD_BYTES, 3 * json_records.HEAD_BYTES]
)
def test_a_record_longer_than_what_is_looked_at_is_recognised(tmp_path, n):
    line = json.dumps({"text": "é" * n}, ensure_ascii=False)
    (tmp_path / "a.txt").write_text(f"{line}\n{line}\n")
    assert form_of(tmp_path / "a.txt") == LINES
    (tmp_path / "b.txt").write_text(f"[{line}, {line}]")
    assert form_of(tmp_path / "b.txt") == ARRAY


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("indent", [1, 4])
def test_an_object_of_several_lines_is_refused(tmp_path, name, indent):
    (tmp_path / name).write_text(json.dumps(PAIRS[0], indent=indent))
    assert form_of(tmp_path / name) == OBJECT
    with pytest.raises(UserError, match=r"object of several lines.*one array of obj"):
        score(f"files:{tmp_path}/{name}", ByteTokenizer(), 16)


@pytest.mark.parametrize(
    "text, fault",
    [
        ("{bad\n", r"a\.json, line 1: is not JSON \(.*\); write an object on each"),
        ("prose\n", r"a\.json, line 1: is not JSON"),
        ('["a", "b"]', r"a\.json, line 1: is not an object, but list"),
        ("[\n1,\n2]", r"a\.json, line 1: is not JSON.*one array of objects"),
        ("[]", r"a\.json, line 1: is not an object, but list"),
        ('[{"text": "a"},\n3]', r"a\.json, record 2 \(line 2\): is not an object"),
        ('[{"text": "a"},\n{"text" 3}]', r"record 2 \(line 2\): is not JSON \(Expect"),
        ('[{"text": "a"},\n{"text": "b"}', r"record 2 \(line 2\): is not followed by"),
        ('[{"text": "a"},\n{"text": "b', r"record 2 \(line 2\): is not JSON \(Unterm"),
        ('[{"text": "a"}]\n[{"text": "b"}]', r"record 1 .*last, and '\[' follows its"),
        ('[{"text": "a"}, {"x": [[' + "[" * 100_000, r"record 2 .line 1.: is not JSON"),
        ('[{"text": "a"}, {"text": 3}]', r"record 2 .line 1.: has no text 'text', but"),
        ('[{"text": "a"}, {"text": "\\ud83d"}]', r"record 2 .* half of a surrogate"),
    ],
)  # fmt: skip
def test_what_is_no_record_is_named_by_its_place(tmp_path, text, fault):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=fault):
        score(f"files:{tmp_path}/a.json", ByteTokenizer(), 16)


@pytest.mark.parametrize("block_bytes", [1, 7, 1 << 20])
def test_items_are_found_wherever_a_block_ends(tmp_path, monkeypatch, block_bytes):
    texts = ["", "é→\U0001f600", 'a "quoted" ]},{[ \\', "\n\r\t", "x" * 5000]
    records = [{"text": text, "more": [{"n": 1}, {}]} for text in texts * 12]
    written = json.dumps(records, indent=1, ensure_ascii=False)
    (tmp_path / "a.json").write_text(written, encoding="utf-8")
    monkeypatch.setattr(json_array, "BLOCK_BYTES", block_bytes)
    if block_bytes == 1:
        monkeypatch.setattr(json_array._ArrayReader, "_read", _one_more)
        records = records[:4]
        (tmp_path / "a.json").write_text(json.dumps(records, ensure_ascii=False))
    parts = open_source(f"files:{tmp_path}/a.json", parts=("every",)).documents()
    found = [(d.text.decode(), d.line) for d in parts["every"]]
    assert [text for text, _ in found] == [record["text"] for record in records]
    if block_bytes > 1:
        starts = [n for n, s in enumerate(written.split("\n"), 1) if s == " {"]
        assert [line for _, line in found] == starts


def _one_more(reader, n):
    block = reader._file.read(1)
    reader._text = reader._text[reader._at :] + reader._decoder.decode(block)
    reader._at = 0
    return bool(block)


def test_an_array_is_split_between_items_and_loses_none(tmp_path):
    texts = [f"text {i}\n" * (i + 1) for i in range(50)]
    (tmp_path / "a.json").write_text(json.dumps([{"text": t} for t in texts], indent=2))
    parts = open_source(f"files:{tmp_path}/a.json").documents()
    found = [[d.text.decode() for d in parts[part]] for part in ("train", "heldout")]
    assert sum(found, []) == texts
    held = sum(map(len, found[1])) / sum(map(len, texts))
    assert 0 < held < 0.1
    assert parts["heldout"][0].line > parts["train"][-1].line


def test_an_array_of_one_item_leaves_nothing_to_hold_out(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "alone"}]')
    with pytest.raises(UserError, match="leaves nothing to hold out"):
        Text(f"files:{tmp_path}/a.json", **SIZES).prepare(progress=False)


def test_answers_that_are_numbers_are_refused_and_not_left_out(tmp_path):
    lines = [json.dumps({"prompt": f"{i} + 1 =", "answer": i + 1}) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = f"files:{tmp_path}/a.jsonl"
    with pytest.raises(UserError, match=r"line 1: has no text 'answer', but int"):
        Pairs(source, **SIZES).prepare(ByteTokenizer(), progress=False)


def test_a_record_above_the_limit_is_refused_by_file_and_line(tmp_path, monkeypatch):
    for module in (json_array, line_index):
        monkeypatch.setattr(module, "RECORD_BYTES", 5_000)
    small, large = ({"text": "x" * n} for n in (4_000, 6_000))
    lines = [json.dumps(each) for each in (small, small, large)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: has more than 5,000 bytes"):
        score(f"files:{tmp_path}/a.jsonl", ByteTokenizer(), 16)
    (tmp_path / "b.json").write_text("[" + ",\n".join(lines) + "]")
    with pytest.raises(
        UserError, match=r"b\.json, record 3 \(line 3\): has more than 5"
    ):
        score(f"files:{tmp_path}/b.json", ByteTokenizer(), 16)


def test_names_that_say_json_today_were_plain_text_in_format_2(tmp_path):
    for name in ("a.json", "b.ndjson", "c.JSONL", "d.txt"):
        (tmp_path / name).write_text(ON_LINES)
    files = {name: named_as_records(f"files:{tmp_path}/{name}") for name in NAMES_OF_2}
    assert files == NAMES_OF_2


NAMES_OF_2 = {"a.json": False, "b.ndjson": False, "c.JSONL": True, "d.txt": False}


@pytest.mark.parametrize("name", ["a.json", "a.ndjson", "a.txt"])
def test_records_by_another_name_are_not_the_content_of_their_plain_text(
    tmp_path, name
):
    (tmp_path / name).write_text(ON_LINES)
    records, text = (
        open_source(f"files:{tmp_path}/{name}", text_field=field).fingerprint()
        for field in ("text", "")
    )
    assert records != text
