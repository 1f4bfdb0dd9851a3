"""Sources are prepared once, hold out what they say, and refuse what is wrong."""

import dataclasses
import hashlib
import lzma
import math
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from jaxpar import cache
from jaxpar.data import stored_tokens, token_files
from jaxpar.data.source import DocumentSource, Pairs, Text, score
from jaxpar.data.task import causal
from jaxpar.data.tokenizer import BPE, Bytes, ByteTokenizer
from jaxpar.errors import DataWentBad, UserError
from jaxpar.files import split
from jaxpar.sources import stdlib
from jaxpar.sources.corpus import (
    Corpus,
    Document,
    Lazy,
    split_by_number,
)
from jaxpar.sources.registry import open_source
from jaxpar.tokens import pieces, unfinished

LINES = b"".join(b"line %d of a small text\n" % i for i in range(400))
SIZES = {"seq_len": 32, "batch_size": 4}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Thirty files, of which the hash holds some out, and a cache of their own."""
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path / "cache"))
    for i in range(30):
        (tmp_path / f"{i}.txt").write_bytes(b"file %d\n" % i + LINES[: 600 + i])
    return tmp_path


def texts(windows):
    """The documents in the order of windows, by their scored bytes."""
    ids = np.concatenate(
        [
            row["targets"][(row["weights"] > 0) & (row["targets"] < 256)]
            for row in map(causal, windows)
        ]
    )
    return bytes(ids.astype(np.uint8))


def test_whole_files_are_held_out_by_the_hash_of_their_names(folder):
    parts = open_source(f"files:{folder}/*.txt").documents()
    held = {document.name for document in parts["heldout"]}
    for name in held:
        assert int(hashlib.sha256(name.encode()).hexdigest(), 16) % 20 == 0
    assert len(held) + len(parts["train"]) == 30 and held
    assert not held & {document.name for document in parts["train"]}


def test_the_end_of_a_single_file_is_held_out_from_a_line_on(tmp_path):
    (tmp_path / "a.txt").write_bytes(LINES)
    parts = open_source(f"files:{tmp_path}/a.txt").documents()
    (train,), (heldout,) = parts["train"], parts["heldout"]
    assert train.text + heldout.text == LINES
    assert train.text.endswith(b"\n")
    assert 0.03 < len(heldout.text) / len(LINES) <= 0.05
    assert heldout.line == 1 + train.text.count(b"\n")


def test_a_text_of_one_line_has_no_end_to_hold_out():
    assert split.tail(b"x" * 100) == 100
    assert split.tail(b"first\n" + b"x" * 100) == 6


def test_held_out_bytes_and_scored_tokens_are_exact(folder):
    prepared = Text(f"files:{folder}/*.txt", **SIZES).prepare()
    parts = open_source(f"files:{folder}/*.txt").documents()
    held = [document.text for document in parts["heldout"]]
    assert texts(prepared.heldout) == b"".join(held)
    assert prepared.heldout.n_bytes == sum(map(len, held))
    # Each document's bytes, and its end.
    assert prepared.heldout.n_tokens == sum(map(len, held)) + len(held)


def test_xz_is_measured_on_the_held_out_bytes(folder):
    prepared = Text(f"files:{folder}/*.txt", **SIZES).prepare()
    held = texts(prepared.heldout)
    nats = len(lzma.compress(held, preset=9)) * 8 * math.log(2) / len(held)
    assert prepared.heldout.xz_nats_per_byte == pytest.approx(nats, rel=1e-12)


def test_preparing_again_opens_what_was_made(folder, monkeypatch):
    source = Text(f"files:{folder}/*.txt", tokenizer=BPE(280), **SIZES)
    first = source.prepare()

    def again(*made):
        raise AssertionError("The files were written again.")

    monkeypatch.setattr(token_files, "_write", again)
    assert source.prepare().fingerprint == first.fingerprint
    longer = Text(f"files:{folder}/*.txt", tokenizer=BPE(280), seq_len=64, batch_size=2)
    assert longer.prepare().fingerprint == first.fingerprint


def test_a_changed_byte_changes_the_fingerprint(folder):
    source = Text(f"files:{folder}/*.txt", **SIZES)
    before = source.prepare().fingerprint
    (folder / "0.txt").write_bytes(LINES)
    assert source.prepare().fingerprint != before


def test_a_tokenizer_learns_only_from_the_training_part(folder):
    prepared = Text(f"files:{folder}/*.txt", tokenizer=BPE(280), **SIZES).prepare()
    train = open_source(f"files:{folder}/*.txt").documents()["train"]
    expected = BPE(280).build(document.text for document in train)
    assert prepared.tokenizer.fingerprint == expected.fingerprint


def test_a_given_tokenizer_is_used_and_nothing_is_learned(folder):
    source = Text(f"files:{folder}/*.txt", tokenizer=BPE(280), **SIZES)
    assert source.prepare(ByteTokenizer()).tokenizer.vocab_size == 259


def test_scoring_reads_all_of_a_source(folder):
    windows = score(f"files:{folder}/*.txt", ByteTokenizer(), 32)
    every = [file.read_bytes() for file in sorted(folder.glob("*.txt"), key=str)]
    assert windows.n_bytes == sum(map(len, every))
    assert texts(windows) == b"".join(every)
    assert windows.n_tokens == windows.n_bytes + len(every)


def test_scoring_a_text_shorter_than_a_window_pads_it(tmp_path):
    (tmp_path / "a.txt").write_text("short")
    windows = score(f"files:{tmp_path}/a.txt", ByteTokenizer(), 32)
    assert (len(windows), windows.n_bytes, windows.n_tokens) == (1, 5, 6)


def test_a_long_text_is_cut_between_characters_and_loses_nothing(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 7)
    text = ("äöü" * 9 + "\nx\n" + "→" * 8).encode()
    some = [*pieces.pieces(text)]
    assert b"".join(some) == text and len(some) > 5
    assert all(piece.decode() for piece in some)


def test_synthetic_text_has_the_entropy_it_claims():
    prepared = Text("synthetic", **SIZES).prepare()
    counts = np.full((16, 16), 1e-9)
    rank = {byte: i for i, byte in enumerate(sorted(set(b"abcdefghijklmno\n")))}
    text = [rank[byte] for byte in texts(prepared.train)]
    np.add.at(counts, (text[:-1], text[1:]), 1)
    joint = counts / counts.sum()
    nats = -np.sum(joint * np.log(joint / joint.sum(axis=1, keepdims=True)))
    claimed = prepared.description["entropy_nats_per_byte"]
    # Joints of documents and 240 free probabilities over 1e6 draws: below 1e-2.
    assert nats == pytest.approx(claimed, abs=1e-2)


def test_synthetic_text_and_importing_need_only_numpy(tmp_path):
    code = (
        "import sys\n"
        "from jaxpar.data.source import Text\n"
        "Text('synthetic', seq_len=64, batch_size=4).prepare(progress=False)\n"
        "heavy = {'tensorflow_datasets', 'pyarrow', 'tokenizers', 'array_record'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"JAXPAR_CACHE": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_standard_library_is_read_without_tests_and_code_pages():
    names = stdlib.modules()
    assert "ast.py" in names and len(names) > 300
    folders = {folder for name in names for folder in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "encodings", "site-packages"}


def test_a_pattern_without_files_is_refused(tmp_path):
    with pytest.raises(UserError, match="matches no file"):
        Text(f"files:{tmp_path}/*.txt", **SIZES).prepare()


def test_empty_files_are_refused_or_skipped_and_counted(folder):
    (folder / "empty.text").write_bytes(b"")
    with pytest.raises(UserError, match="empty"):
        Text(f"files:{folder}/empty.text", **SIZES).prepare()
    prepared = Text(f"files:{folder}/*.t*", **SIZES).prepare()
    assert prepared.description["empty_files"] == 1


def test_a_file_that_is_not_utf8_is_refused_with_the_byte(folder):
    (folder / "7.txt").write_bytes(b"good \xff bad")
    with pytest.raises(UserError, match=r"7\.txt is not UTF-8 at byte 5"):
        Text(f"files:{folder}/*.txt", **SIZES).prepare()


def test_nul_bytes_and_a_single_huge_line_are_text_like_any_other(tmp_path):
    text = b"\x00" * 3_000_000 + b"\nend\n"
    (tmp_path / "a.txt").write_bytes(text)
    windows = score(f"files:{tmp_path}/a.txt", ByteTokenizer(), 1024)
    assert windows.n_bytes == len(text)


def test_a_held_out_part_that_fills_no_window_is_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(LINES)
    with pytest.raises(UserError, match="does not fill one window of .* 1001"):
        Text(f"files:{tmp_path}/a.txt", seq_len=1000, batch_size=1).prepare()


def test_fewer_windows_than_one_batch_are_refused(tmp_path):
    (tmp_path / "a.txt").write_bytes(LINES)
    with pytest.raises(UserError, match=r"has \d+ windows .* 10000 are needed"):
        Text(f"files:{tmp_path}/a.txt", seq_len=32, batch_size=10_000).prepare()


@pytest.mark.parametrize("source", ["wiki", "files:", "stdlib:x", "tfds:"])
def test_an_unknown_source_is_refused(source):
    with pytest.raises(UserError, match="choose stdlib, synthetic, files:GLOB or"):
        Text(source, **SIZES).prepare()


def test_a_remote_path_is_refused():
    with pytest.raises(UserError, match="not a local path"):
        Text("files:gs://bucket/a.txt", **SIZES).prepare()


@pytest.mark.parametrize("name", ["seq_len", "batch_size"])
def test_a_size_below_one_is_refused(name):
    with pytest.raises(UserError, match=f"{name}=0"):
        Text("stdlib", **{**SIZES, name: 0})


def test_token_files_that_changed_are_refused(folder):
    source = Text(f"files:{folder}/*.txt", **SIZES)
    path = cache.root() / "windows" / source.prepare().fingerprint
    tokens = path / "train" / "tokens.bin"
    raw = bytearray(tokens.read_bytes())
    tokens.unlink()
    raw[100] ^= 1
    tokens.write_bytes(raw)
    with pytest.raises(DataWentBad, match=r"tokens.bin is damaged: bytes 0 to \d+"):
        source.prepare()


def test_tokens_that_the_libraries_would_now_make_differently_are_refused(folder):
    source = Text(f"files:{folder}/*.txt", **SIZES)
    path = cache.root() / "windows" / source.prepare().fingerprint / "train"
    meta = stored_tokens.read_meta(path)
    meta["probe"]["ids"][0] += 1
    stored_tokens.write_meta(path, meta)
    with pytest.raises(UserError, match="other tokens"):
        source.prepare()


def test_a_build_that_fails_leaves_no_files(tmp_path):
    def fail(directory):
        (directory / "half").write_text("made")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        cache.build_once(tmp_path / "made", fail)
    assert not list(tmp_path.iterdir())


def test_the_first_of_two_builders_stands(tmp_path):
    """The other one is of another machine, whose locks are not seen here."""

    def late(directory):
        (directory / "who").write_text("late")
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "who").write_text("first")

    for build in (cache.build_once, unfinished.build):
        assert (build(tmp_path / "made", late) / "who").read_text() == "first"
        left = [p.name for p in tmp_path.iterdir() if p.suffix != ".lock"]
        assert left == ["made"]
        shutil.rmtree(tmp_path / "made")


def test_plain_text_under_pairs_continues_the_pretraining(folder):
    text = Text(f"files:{folder}/*.txt", tokenizer=Bytes(), **SIZES).prepare()
    pairs = Pairs(f"files:{folder}/*.txt", **SIZES).prepare(ByteTokenizer())
    assert pairs.fingerprint == text.fingerprint


@pytest.mark.parametrize("name", [b"caf\xe9.txt", b"d\xff/a.txt"])
def test_a_file_name_that_is_not_utf8_is_named_in_one_line(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write("text\n" * 100)
    said = re.escape(repr(path)) + " is not UTF-8.*rename the file"
    with pytest.raises(UserError, match=said):
        open_source(f"files:{tmp_path}/**/*.txt").fingerprint()


def parts_of(source):
    return {
        name: [(d.name, d.text) for d in documents]
        for name, documents in open_source(source).documents().items()
    }


@pytest.mark.parametrize("link", ["latest", "0"])
def test_links_make_no_document_twice(folder, capsys, link):
    before = parts_of(f"files:{folder}/**/*.txt")
    (folder / link).symlink_to(".")
    (folder / "first.txt").symlink_to("7.txt")
    source = f"files:{folder}/**/*.txt"
    assert parts_of(source) == before
    assert sum(map(len, before.values())) == 30
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "each file is read once" in line]) == 1


def test_a_folder_of_links_alone_is_read_by_their_names(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "texts").mkdir()
    for i in range(3):
        (tmp_path / "store" / f"{i}").write_bytes(b"%d " % i + LINES)
        (tmp_path / "texts" / f"{i}.txt").symlink_to(f"../store/{i}")
        (tmp_path / "texts" / f"copy{i}.txt").symlink_to(f"../store/{i}")
    found = parts_of(f"files:{tmp_path}/texts/*.txt")
    assert [name for name, _ in found["train"]] == ["0.txt", "1.txt", "2.txt"]


class Faulty(Corpus):
    """Two hundred documents, and what is to go wrong."""

    source = "faulty"

    def __init__(self, fault):
        self.fault = fault

    def documents(self):
        if self.fault == "documents":
            raise KeyError("gone")
        return split_by_number(Lazy(range(200), self.read))

    def read(self, i):
        if i == 7 and self.fault in ("read", "index"):
            raise (OSError if self.fault == "read" else IndexError)("gone")
        text = b"text\n" * 20
        is_wrong = i == 7 and self.fault == "str"
        return Document(f"number {i}", text.decode() if is_wrong else text)

    def fingerprint(self):
        return f"{self.fault}:{len(self.fault)}"


@dataclasses.dataclass(frozen=True)
class FaultyData(DocumentSource):
    fault: str

    def corpus(self):
        if self.fault == "open":
            raise ZeroDivisionError("gone")
        return Faulty(self.fault)


@pytest.mark.parametrize(
    "fault, words",
    [
        ("open", r"^FaultyData \(.*\): ZeroDivisionError: gone"),
        ("documents", r"^Faulty \(faulty\), the part 'train': KeyError: 'gone'"),
        ("read", r"^Faulty \(faulty\), document 7 of the part 'train': OSError: gone"),
        ("index", r"^Faulty \(faulty\), document 7 of .*: IndexError: gone"),
        ("str", r"^faulty, document 7 .* \(number 7\): its text is of type str; it mu"),
    ],
)
@pytest.mark.parametrize("tokenizer", [Bytes(), BPE(300)], ids=["bytes", "bpe"])
def test_an_error_in_a_source_of_ones_own_names_it_and_the_record(
    fault, words, tokenizer
):
    data = FaultyData(fault, tokenizer=tokenizer, **SIZES)
    with pytest.raises(UserError, match=words):
        data.prepare(progress=False)
