"""A prepared corpus starts without a look into its files, and sees any change of them.

pytest tests/sources/test_known.py
"""

import gzip
import json
import os
import shutil
import sys

import numpy as np
import pytest

from jaxpar import cache
from jaxpar.data import same_data
from jaxpar.data.source import Pairs, Text, score
from jaxpar.data.tokenizer import BPE, ByteTokenizer
from jaxpar.errors import UserError
from jaxpar.files import compressed, kept
from jaxpar.partition import cluster
from jaxpar.sources import known
from jaxpar.sources.known import open_known
from jaxpar.sources.registry import open_source

SIZES = {"seq_len": 16, "batch_size": 8}
LINES = b"".join(b"line %d of a text\n" % i for i in range(100))
OPENED = []
sys.addaudithook(
    lambda event, args: OPENED.append(args[0]) if event == "open" else None
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache of its own, in which files are trusted that were just written."""
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "RESOLUTION_NS", 0)


@pytest.fixture
def corpus(tmp_path):
    """A folder with files of several kinds, each of which can be a corpus."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(30):
        (folder / f"{i}.txt").write_bytes(b"file %d\n" % i + LINES)
    records = [{"text": f"record {i} " * 20} for i in range(100)]
    (folder / "a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    pairs = [{"prompt": f"say {i}", "answer": f"{i} it is"} for i in range(100)]
    (folder / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in pairs))
    (folder / "a.csv").write_text("text\n" + "".join(f"row {i}\n" for i in range(900)))
    (folder / "a.md.gz").write_bytes(gzip.compress(LINES * 3))
    return folder


def read_raw(folder, work):
    """Which files below a folder are opened for some work."""
    OPENED.clear()
    work()
    names = [os.fsdecode(path) for path in OPENED if isinstance(path, str | bytes)]
    return {name for name in names if name.startswith(f"{folder}/")}


def text(source, **fields):
    return Text(source, **SIZES, **fields).prepare(progress=False)


def pairs(source):
    return Pairs(source, **SIZES).prepare(ByteTokenizer(), progress=False)


STARTS = {
    "text": lambda at: text(f"files:{at}/*.txt"),
    "plain text": lambda at: text(f"files:{at}/a.jsonl", text_field=""),
    "a tokenizer": lambda at: text(f"files:{at}/*.txt", tokenizer=BPE(300)),
    "lines": lambda at: text(f"files:{at}/a.jsonl"),
    "rows": lambda at: text(f"files:{at}/a.csv"),
    "compressed": lambda at: text(f"files:{at}/a.md.gz"),
    "pairs": lambda at: pairs(f"files:{at}/p.jsonl"),
    "no pairs": lambda at: pairs(f"files:{at}/a.jsonl"),
    "held out": lambda at: text(f"files:{at}/*.txt", heldout=f"files:{at}/a.md.gz"),
    "scored": lambda at: score(f"files:{at}/1.txt", ByteTokenizer(), 16),
    "scored pairs": lambda at: score(f"files:{at}/p.jsonl", ByteTokenizer(), 64),
}


@pytest.mark.parametrize("start", STARTS)
def test_the_second_start_reads_no_raw_byte_and_finds_the_same(corpus, start):
    found = []
    assert read_raw(corpus, lambda: found.append(STARTS[start](corpus)))
    assert not read_raw(corpus, lambda: found.append(STARTS[start](corpus)))
    first, second = found
    if hasattr(first, "description"):
        assert first.description == second.description
        assert first.fingerprint == second.fingerprint
        first, second = first.train, second.train
    assert len(first) == len(second) and first.n_bytes == second.n_bytes
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("lost", ["kept", "windows", "*"])
def test_what_the_cache_has_lost_is_made_again(corpus, start, lost):
    first = STARTS[start](corpus)
    for folder in cache.root().glob(lost):
        shutil.rmtree(folder)
    compressed._unpacked.cache_clear()
    second = STARTS[start](corpus)
    if hasattr(first, "description"):
        assert first.description == second.description
    else:
        assert [*map(str, first)] == [*map(str, second)]


def change(corpus):
    path = corpus / "7.txt"
    path.write_bytes(path.read_bytes().replace(b"line 3 ", b"line 4 "))


def change_secretly(corpus):
    times = (corpus / "7.txt").stat()
    change(corpus)
    os.utime(corpus / "7.txt", ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES = {
    "changed": change,
    "changed, with its old time": change_secretly,
    "added": lambda corpus: (corpus / "99.txt").write_bytes(LINES),
    "removed": lambda corpus: (corpus / "7.txt").unlink(),
    "renamed": lambda corpus: (corpus / "7.txt").rename(corpus / "77.txt"),
    "emptied": lambda corpus: (corpus / "7.txt").write_bytes(b""),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_corpus_that_is_another_is_seen_and_found_again(corpus, how):
    source, before = f"files:{corpus}/*.txt", text(f"files:{corpus}/*.txt")
    shutil.copytree(corpus, corpus.with_name("copy"))
    CHANGES[how](corpus)
    after = text(source)
    assert after.description["content"] != before.description["content"]
    assert after.description["content"] == open_source(source).fingerprint()
    assert not read_raw(corpus, lambda: text(source))


def test_a_file_that_is_there_only_while_others_are_read_is_forgotten(
    corpus, monkeypatch
):
    def opened(*args, **options):
        (corpus / "99.txt").write_bytes(LINES)
        return open_source(*args, **options)

    source = f"files:{corpus}/*.txt"
    expected = open_source(source).fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(known, "open_source", opened)
        assert open_known(source).fingerprint() != expected
    (corpus / "99.txt").unlink()
    assert open_known(source).fingerprint() == expected


def test_a_file_that_is_no_text_is_refused_at_every_start(corpus):
    source = f"files:{corpus}/*.txt"
    text(source)
    (corpus / "7.txt").write_bytes(b"\xff\xfe")
    for _ in range(2):
        with pytest.raises(UserError, match=r"7\.txt is not UTF-8 at byte 0"):
            text(source)


def test_other_words_for_the_same_files_are_another_corpus(corpus):
    # The names decide what is held out.
    ways = [f"files:{corpus}/*.txt", f"files:{corpus.parent}/*/*.txt"]
    for source in ways * 2:
        expected = open_source(source).fingerprint()
        assert open_known(source).fingerprint() == expected


def test_versions_that_an_old_receipt_records_are_looked_up_in_the_files(corpus):
    source = f"files:{corpus}/*.txt"
    text(source)
    versions = {"tensorflow-datasets": "1.0", "array-record": "2.0"}
    expected = open_source(source).versioned_fingerprint(versions)
    assert open_known(source).versioned_fingerprint(versions) == expected


class Second:
    """This process as the second of two, after what the first has sent."""

    def __init__(self, monkeypatch, sent):
        self.sent = sent
        for name in ("count", "is_first", "broadcast", "synchronized"):
            monkeypatch.setattr(cluster, name, getattr(self, name))

    def count(self):
        return 2

    def is_first(self):
        return False

    def broadcast(self, mine):
        return json.loads(json.dumps(self.sent))

    def synchronized(self):
        return cluster.contextlib.nullcontext()


def prepared_by_the_first(start, corpus):
    before = known.FOUND.set({})
    try:
        return STARTS[start](corpus), known.FOUND.get()
    finally:
        known.FOUND.reset(before)


@pytest.mark.parametrize("start", STARTS)
def test_another_process_needs_no_files_at_all(corpus, start, monkeypatch):
    first, sent = prepared_by_the_first(start, corpus)
    shutil.rmtree(corpus)
    shutil.rmtree(cache.root() / "kept")
    Second(monkeypatch, sent)
    second = same_data.prepare_together(lambda: STARTS[start](corpus))
    if hasattr(first, "description"):
        assert first.description == second.description
    else:
        assert len(first) == len(second)


def test_another_host_prepares_by_itself_and_from_the_same_files(corpus, monkeypatch):
    first, sent = prepared_by_the_first("text", corpus)
    Second(monkeypatch, sent)
    monkeypatch.setenv("JAXPAR_CACHE", str(corpus.parent / "its own cache"))
    second = same_data.prepare_together(lambda: STARTS["text"](corpus))
    assert first.description == second.description
    monkeypatch.setenv("JAXPAR_CACHE", str(corpus.parent / "another cache"))
    change(corpus)
    with pytest.raises(UserError, match="other data here .* than for process 0"):
        same_data.prepare_together(lambda: STARTS["text"](corpus))
