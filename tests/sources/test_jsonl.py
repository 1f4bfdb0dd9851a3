"""JSON lines are documents or examples; a line that is neither is named."""

import json

import pytest

from jaxpar import cache
from jaxpar.data.source import Pairs, Text, score
from jaxpar.data.tokenizer import BPE, ByteTokenizer
from jaxpar.errors import UserError
from jaxpar.files import scanned, split
from jaxpar.sources.jsonl import JsonLines, Records
from jaxpar.sources.registry import open_source
from jaxpar.sources.text_files import TextFiles

SIZES = {"seq_len": 16, "batch_size": 2}
PAIR = {"prompt": "1 + 1 =", "answer": " 2"}


def write(path, records):
    """A file of these records, or of these lines where they are texts already."""
    lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return f"files:{path}"


def documents(source, **settings):
    """Text of every document, the training part first."""
    parts = open_source(source, **settings).documents()
    return [d.text.decode() for part in ("train", "heldout") for d in parts[part]]


@pytest.fixture
def texts(tmp_path):
    return write(tmp_path / "a.jsonl", [{"text": f"text {i}"} for i in range(60)])


def test_the_text_is_in_the_field_named_text(tmp_path):
    records = [{"id": f"{i}", "text": f"text {i}", "n": i} for i in range(60)]
    source = write(tmp_path / "a.jsonl", records)
    assert documents(source) == [f"text {i}" for i in range(60)]
    prepared = Text(source, **SIZES).prepare(progress=False)
    assert prepared.description["train"]["documents"] == 58
    assert prepared.description["heldout"]["documents"] == 2


def test_another_field_is_read_where_it_is_named(tmp_path):
    records = [{"text": "no", "body": f"body {i}"} for i in range(60)]
    source = write(tmp_path / "a.jsonl", records)
    assert documents(source, text_field="body")[7] == "body 7"
    prepared = Text(source, text_field="body", **SIZES).prepare(progress=False)
    assert b"body 0" in prepared.train[0].tokens.astype("uint8").tobytes()


def test_the_only_field_of_text_is_found(tmp_path):
    records = [{"n": i, "body": f"body {i}", "tags": ["x"]} for i in range(60)]
    assert documents(write(tmp_path / "a.jsonl", records))[7] == "body 7"


def test_several_fields_none_of_them_named_text_are_refused(tmp_path):
    records = [{"title": "t", "body": "b", "n": 1}] * 60
    source = write(tmp_path / "a.jsonl", records)
    words = r"line 1: .*'text'.*\['title', 'body'\], no text in \['n'\].*--data.text-fi"
    with pytest.raises(UserError, match=words):
        Text(source, **SIZES).prepare(progress=False)


def test_a_first_line_without_text_does_not_make_another_field_the_text(tmp_path):
    records = [{"id": "0"}, *({"id": f"{i}", "text": "t"} for i in range(1, 60))]
    source = write(tmp_path / "a.jsonl", records)
    with pytest.raises(UserError, match=r"a\.jsonl, line 1: has no text 'text', only"):
        Text(source, **SIZES).prepare(progress=False)


def test_prompts_with_answers_are_no_text(tmp_path):
    source = write(tmp_path / "a.jsonl", [PAIR] * 60)
    corpus = open_source(source)
    assert corpus.has_examples and corpus.has_only_examples
    with pytest.raises(UserError, match=r"prompts with answers: fine-tune.*Pairs"):
        Text(source, **SIZES).prepare(progress=False)
    assert documents(source, text_field="answer") == [" 2"] * 60


def test_pairs_trains_on_answers_only(tmp_path):
    source = write(tmp_path / "a.jsonl", [PAIR] * 60)
    prepared = Pairs(source, **SIZES).prepare(ByteTokenizer(), progress=False)
    assert prepared.train.n_bytes == 57 * len(" 2")


def test_records_with_both_are_examples_to_pairs_and_documents_to_text(tmp_path):
    source = write(tmp_path / "a.jsonl", [{**PAIR, "text": "a document"}] * 60)
    corpus = open_source(source)
    assert corpus.has_examples and not corpus.has_only_examples
    assert documents(source) == ["a document"] * 60
    pairs = Pairs(source, **SIZES).prepare(ByteTokenizer(), progress=False)
    text = Text(source, **SIZES).prepare(progress=False)
    assert pairs.train.n_bytes == 57 * 2 and text.fingerprint != pairs.fingerprint


def test_pairs_continues_on_documents(texts):
    pairs = Pairs(texts, **SIZES).prepare(ByteTokenizer(), progress=False)
    assert pairs.fingerprint == Text(texts, **SIZES).prepare(progress=False).fingerprint


def test_lines_that_were_prepared_as_plain_text_are_still_refused(tmp_path):
    source = write(tmp_path / "a.jsonl", [PAIR] * 60)
    plain = Text(source, text_field="", tokenizer=BPE(280), **SIZES)
    plain.prepare(progress=False)
    with pytest.raises(UserError, match="prompts with answers: fine-tune"):
        Text(source, tokenizer=BPE(280), **SIZES).prepare(progress=False)


def test_blank_lines_are_skipped_and_counted(tmp_path):
    records = ["", *([{"text": "t"}, "  ", "\r"] * 20)]
    source = write(tmp_path / "a.jsonl", records)
    parts = open_source(source).documents()
    lines = [d.line for part in ("train", "heldout") for d in parts[part]]
    assert lines == list(range(2, 62, 3))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{bad", "is not JSON"),
        pytest.param("[" * 100_000, "is not JSON", id="deep"),
        ("[1, 2]", "is not an object, but list"),
        ('"text"', "is not an object, but str"),
        ('{"other": "x"}', r"has no text 'text', only \['other'\]"),
        ('{"text": null}', "has no text 'text', but null"),
        ('{"text": 3}', "has no text 'text', but int"),
    ],
)
# Line 60 is in the held-out end: its number counts from the start of the file, too.
@pytest.mark.parametrize("number", [1, 30, 60])
def test_a_line_that_is_no_document_is_named(tmp_path, line, fault, number):
    lines = ['{"text": "t"}'] * 59
    lines.insert(number - 1, line)
    source = write(tmp_path / "bad.jsonl", lines)
    with pytest.raises(UserError, match=f"bad.jsonl, line {number}: {fault}"):
        Text(source, **SIZES).prepare(progress=False)


def test_several_files_are_read_in_the_order_of_their_names(tmp_path):
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.jsonl", [{"text": f"{name}{i}"} for i in range(40)])
    parts = open_source(f"files:{tmp_path}/*.jsonl").documents()
    assert [d.text for d in parts["heldout"]] == [b"a39", b"b39", b"c39"]
    assert parts["heldout"][1].name == "b.jsonl" and parts["heldout"][1].line == 40
    assert [d.text for d in parts["train"]][38:41] == [b"a38", b"b0", b"b1"]


def test_of_many_files_whole_ones_are_held_out_by_name(tmp_path):
    for i in range(30):
        write(tmp_path / f"{i}.jsonl", [{"text": f"file {i}, text {k}"} for k in "ab"])
    parts = open_source(f"files:{tmp_path}/*.jsonl").documents()
    held = {document.name for document in parts["heldout"]}
    assert held == {f"{i}.jsonl" for i in range(30) if split.held_out(f"{i}.jsonl")}
    assert held and len(parts["train"]) + len(parts["heldout"]) == 60


def test_empty_files_are_skipped_and_counted(tmp_path, texts):
    (tmp_path / "empty.jsonl").write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        Text(f"files:{tmp_path}/empty.jsonl", **SIZES).prepare(progress=False)
    prepared = Text(f"files:{tmp_path}/*.jsonl", **SIZES).prepare(progress=False)
    assert prepared.description["empty_files"] == 1


@pytest.mark.parametrize("data", [Text, Pairs])
def test_a_file_of_blank_lines_is_refused(tmp_path, data):
    (tmp_path / "a.jsonl").write_text("\n  \n\n" * 30)
    source = f"files:{tmp_path}/a.jsonl"
    with pytest.raises(UserError, match="every line is blank"):
        data(source, **SIZES).prepare(ByteTokenizer(), progress=False)
    with pytest.raises(UserError, match="every line is blank"):
        score(source, ByteTokenizer(), 16)


def test_blank_lines_alone_in_the_held_out_end_are_refused(tmp_path):
    lines = ['{"text": "t"}'] * 10 + [" " * 40] * 10
    source = write(tmp_path / "a.jsonl", lines)
    with pytest.raises(UserError, match="leaves nothing to hold out"):
        Text(source, **SIZES).prepare(progress=False)


def test_scoring_counts_answers_of_examples_and_every_byte_of_documents(tmp_path):
    examples = write(tmp_path / "pairs.jsonl", [PAIR] * 60)
    windows = score(examples, ByteTokenizer(), 16)
    assert (windows.n_bytes, windows.n_tokens) == (60 * 2, 60 * 3)
    both = write(tmp_path / "both.jsonl", [{**PAIR, "text": "abcde"}] * 60)
    windows = score(both, ByteTokenizer(), 16)
    assert (windows.n_bytes, windows.n_tokens) == (60 * 5, 60 * 6)


def test_the_fingerprint_changes_with_a_byte_and_with_the_field(tmp_path):
    def fingerprint(**settings):
        return open_source(f"files:{tmp_path}/a.jsonl", **settings).fingerprint()

    records = [{"text": "a", "body": "b"} for _ in range(60)]
    write(tmp_path / "a.jsonl", records)
    before = fingerprint()
    assert fingerprint() == before
    prints = {before, fingerprint(text_field="body"), fingerprint(text_field="")}
    write(tmp_path / "a.jsonl", [*records[1:], {"text": "a", "body": "c"}])
    assert len({*prints, fingerprint()}) == 4


def test_the_fingerprint_of_examples_is_as_it_was_before_documents_were_read(tmp_path):
    source = write(tmp_path / "a.jsonl", [PAIR] * 60)
    name = source.removeprefix("files:")
    as_files = TextFiles(name, source=source)
    assert open_source(source).fingerprint() == as_files.fingerprint()
    (file,) = as_files.scanned
    identity = {
        "files": [["a.jsonl", file.digest]],
        "pieces": {
            part: [[piece.name, piece.start, piece.stop] for piece in pieces]
            for part, pieces in as_files.pieces.items()
        },
    }
    assert as_files.fingerprint() == cache.key(**identity)
    versions = cache.versions("tensorflow-datasets", "array-record")
    assert as_files.versioned_fingerprint() == cache.key(**identity, versions=versions)


@pytest.mark.parametrize("escaped", [True, False])
def test_unicode_and_escaped_newlines_survive_exactly(tmp_path, escaped):
    # U+2028 ends a line for str.splitlines, and not in JSON lines.
    text = 'Öl → \U0001f600\n\r\n\ttwo\u2028lines\x00 "quoted" \\n'
    line = json.dumps({"text": text}, ensure_ascii=escaped)
    assert documents(write(tmp_path / "a.jsonl", [line] * 40)) == [text] * 40


def test_a_byte_order_mark_and_carriage_returns_are_no_part_of_the_text(tmp_path):
    line = b'{"text": "t"}\r\n'
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + line * 40)
    assert documents(f"files:{tmp_path}/a.jsonl") == ["t"] * 40


@pytest.mark.parametrize("half", ["d83d", "de00", "de00\\ud83d"])
def test_half_a_surrogate_pair_is_refused_with_file_and_line(tmp_path, half):
    whole, broken = r"a\ud83d\ude00 b", rf"a\u{half} b"
    lines = [rf'{{"text": "{whole}"}}'] * 40
    assert documents(write(tmp_path / "a.jsonl", lines)) == ["a\U0001f600 b"] * 40
    lines[6] = rf'{{"text": "{broken}"}}'
    source = write(tmp_path / "a.jsonl", lines)
    said = rf"a\.jsonl, line 7: has the character '\\u{half[:4]}' at place 1 of 'text'"
    with pytest.raises(UserError, match=said):
        documents(source)


@pytest.mark.parametrize("field", ["prompt", "answer"])
def test_half_a_surrogate_pair_in_an_example_is_refused(tmp_path, field):
    broken = json.dumps({**PAIR, field: "cut \ud83d"})
    source = write(tmp_path / "a.jsonl", [PAIR, broken])
    with pytest.raises(UserError, match=rf"line 2: has the character .* {field!r}"):
        score(source, ByteTokenizer(), 16)


def test_a_last_line_without_a_newline_is_a_line(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(['{"text": "t"}'] * 40))
    assert len(documents(f"files:{tmp_path}/a.jsonl")) == 40


def test_a_byte_that_is_not_utf8_is_named_wherever_a_block_ends(tmp_path, monkeypatch):
    text = '{"text": "äöü→"}\n'.encode() * 3
    (tmp_path / "a.jsonl").write_bytes(text + b"\xff\n")
    (tmp_path / "b.jsonl").write_bytes(text + b"\xc3")
    for block_bytes in (1, 7, 1 << 20):
        monkeypatch.setattr(scanned, "BLOCK_BYTES", block_bytes)
        for name in "ab":
            words = rf"{name}\.jsonl is not UTF-8 at byte {len(text)};"
            with pytest.raises(UserError, match=words):
                open_source(f"files:{tmp_path}/{name}.jsonl").fingerprint()


def test_blocks_change_neither_hash_nor_pieces(texts, monkeypatch):
    before = open_source(texts)
    monkeypatch.setattr(scanned, "BLOCK_BYTES", 11)
    assert open_source(texts).fingerprint() == before.fingerprint()
    assert open_source(texts).pieces == before.pieces


def test_lines_keep_16_bytes_each_and_no_text(texts):
    corpus = open_source(texts)
    assert isinstance(corpus, JsonLines)
    (index,) = corpus._indices.values()
    assert index._rows.nbytes == 16 * len(index)
    lines = Records(corpus.pieces["train"], corpus._indices)
    assert lines[-1] == lines[len(lines) - 1] and len(lines[:3]) == 3
    with pytest.raises(IndexError):
        lines[len(lines)]


def test_a_file_is_opened_once_for_all_its_lines(tmp_path, monkeypatch):
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", [{"text": "t"}] * 40)
    found = open_source(f"files:{tmp_path}/*.jsonl", parts=("every",)).documents()
    opened = []
    monkeypatch.setattr("builtins.open", _counted(open, opened))
    assert len(list(found["every"])) == 80
    # The first file has stayed open since its first lines were read.
    assert [path.name for path in opened if path.parent == tmp_path] == ["b.jsonl"]


def _counted(function, calls):
    def counted(path, *arguments, **settings):
        calls.append(path)
        return function(path, *arguments, **settings)

    return counted
