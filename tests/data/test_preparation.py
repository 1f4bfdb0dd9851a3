"""Prepared tokens: the same bytes however they are made, in bounded memory."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxpar import cache
from jaxpar.data import encoding, stored_tokens, token_files
from jaxpar.data.added_tokens import AddedTokens
from jaxpar.data.tokenizer import BPE, Bytes
from jaxpar.errors import UserError
from jaxpar.sources.corpus import Example
from jaxpar.tokens import encoders, part_writer, pieces, units
from jaxpar.tokens.journal import Journal

LINES = "".join(f"line {i} is {'long ' * (i % 7)}ünd {i * i}\n" for i in range(400))
ITEMS = [
    Example(LINES.encode()),
    Example(b"short"),
    Example(b""),
    Example("中文。".encode() * 900, b"a prompt"),
    Example(b"", b"p" * 4_000),
    Example(b"answer", LINES[:3_000].encode()),
    *(Example(f"document {i}".encode()) for i in range(50)),
]
TOKENIZERS = {
    "bytes": Bytes().build([]),
    "bpe": BPE(400).build([LINES.encode()]),
    "added": AddedTokens(BPE(400).build([LINES.encode()]), ["line 3", "ünd is"]),
}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of its own, and pieces so short that items have many."""
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1_000)
    monkeypatch.setattr(units, "UNIT_BYTES", 1_000)
    return tmp_path / "cache"


def write(tokenizer, name):
    parts = {"train": ITEMS, "heldout": ITEMS[1:30]}
    return token_files.write_token_files(
        parts, parts.__getitem__, tokenizer, content=name, progress=False
    )


def files(folder):
    """What is written, without what the preparation's own name changes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_those_of_each_piece_between_a_beginning_and_an_end(name):
    tokenizer = TOKENIZERS[name]
    file = stored_tokens.open_token_file(write(tokenizer, "a") / "train", tokenizer)
    start = 0
    for i, item in enumerate(ITEMS):
        ids = [tokenizer.bos_id]
        for text in pieces.pieces(item.prompt):
            ids += tokenizer.encode(text).tolist()
        assert file.prompts[i] == len(ids) and file.sizes[i] == len(item.answer)
        for text in pieces.pieces(item.answer):
            ids += tokenizer.encode(text).tolist()
        ids.append(tokenizer.eos_id)
        assert file.tokens[start : file.ends[i]].tolist() == ids
        start = file.ends[i]
    assert start == len(file.tokens)


@pytest.mark.parametrize("unit_bytes", [1, 300, 100_000])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_units_of_any_size_give_the_same_bytes(name, unit_bytes, monkeypatch):
    expected = files(write(TOKENIZERS[name], "a"))
    monkeypatch.setattr(units, "UNIT_BYTES", unit_bytes)
    assert files(write(TOKENIZERS[name], "b")) == expected


@pytest.mark.parametrize("name", ["bpe", "added"])
@pytest.mark.parametrize("cores", [1, 3])
def test_any_number_of_processes_gives_the_same_bytes(name, cores, monkeypatch):
    expected = files(write(TOKENIZERS[name], "a"))
    monkeypatch.setattr(encoders, "ALONE_BYTES", 2_000)
    monkeypatch.setattr(encoders, "n_cores", lambda: cores)
    assert files(write(TOKENIZERS[name], "b")) == expected


def test_many_processes_are_started_for_much_text(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "ALONE_BYTES", 3)
    with encoders.Encoders(
        TOKENIZERS["bpe"], tmp_path / "copy", encoding.__name__, cores=2
    ) as some:
        assert some.submit([b"many"]).result() and some.n_ahead == 0
        found = some.submit([b"line 1", b"", b"line 2"]).result()
        assert some.n_ahead == 4
        expected = TOKENIZERS["bpe"].encode_many([b"line 1", b"", b"line 2"])
        assert [each.tolist() for each in found] == [e.tolist() for e in expected]
        with pytest.raises(UserError, match="not UTF-8 at byte 2"):
            some.submit([b"ab\xff"]).result()


@pytest.mark.parametrize("commit", range(1, 24, 3))
@pytest.mark.parametrize("place", ["before", "after", "torn"])
def test_a_preparation_that_is_stopped_anywhere_ends_in_the_same_bytes(
    commit, place, monkeypatch
):
    """Stopped before, within or after a line of the journal, and then once more."""
    expected = files(write(TOKENIZERS["bpe"], "a"))
    monkeypatch.setattr(part_writer, "COMMIT_BYTES", 500)
    real, calls = Journal.add, []

    def add(self, entry):
        calls.append(1)
        if len(calls) not in (commit, commit + 2):
            return real(self, entry)
        if place == "after":
            real(self, entry)
        if place == "torn":
            with open(self.path, "ab") as file:
                file.write(b"\n" + json.dumps(entry).encode()[:-9])
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", add)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            write(TOKENIZERS["bpe"], "b")
    done = write(TOKENIZERS["bpe"], "b")
    assert files(done) == expected
    assert [path.name for path in done.parent.iterdir() if "-" in path.name] == []


def test_what_was_written_is_not_tokenised_again(monkeypatch):
    monkeypatch.setattr(part_writer, "COMMIT_BYTES", 500)
    real, encoded = encoders.Encoders.submit, []

    def submit(self, texts):
        if len(encoded) >= stop_at:
            raise KeyboardInterrupt
        encoded.extend(texts)
        return real(self, texts)

    monkeypatch.setattr(encoders.Encoders, "submit", submit)
    stop_at = 20
    with pytest.raises(KeyboardInterrupt):
        write(TOKENIZERS["bpe"], "a")
    first, stop_at = len(encoded), 10_000
    write(TOKENIZERS["bpe"], "a")
    # At most the text of one line of the journal is encoded a second time.
    assert len(encoded) - sum(1 for _ in _texts()) <= 3 < first


def _texts():
    for part in (ITEMS, ITEMS[1:30]):
        for unit in units.units(part):
            yield from unit.texts


def test_a_damaged_beginning_is_written_anew(monkeypatch, capfd):
    expected = files(write(TOKENIZERS["bpe"], "a"))
    monkeypatch.setattr(part_writer, "COMMIT_BYTES", 500)
    real, calls = Journal.add, []

    def add(self, entry):
        real(self, entry)
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", add)
    with pytest.raises(KeyboardInterrupt):
        write(TOKENIZERS["bpe"], "b")
    (tokens,) = cache.root().glob("windows/.*/train/tokens.bin")
    raw = bytearray(tokens.read_bytes())
    raw[7] ^= 1
    tokens.write_bytes(raw)
    assert files(write(TOKENIZERS["bpe"], "b")) == expected
    assert "is damaged; it is written anew" in capfd.readouterr().err


def test_a_tokenizer_that_makes_an_id_beyond_its_vocabulary_is_refused(home):
    class Wrong(type(TOKENIZERS["bytes"])):
        def encode_many(self, texts):
            return [np.full(len(text), 500, np.int32) for text in texts]

    with pytest.raises(UserError, match="made id 500, .* only 259"):
        write(Wrong(), "a")
    assert [*(home / "windows").iterdir()] == []


PREPARE = """
import sys
from jaxpar.tokens import encoders, part_writer, units
from jaxpar.data.source import Text
from jaxpar.data.tokenizer import BPE

encoders.ALONE_BYTES, encoders.n_cores = 200_000, lambda: 2
part_writer.COMMIT_BYTES, units.UNIT_BYTES = 300_000, 100_000
text = Text(sys.argv[1], seq_len=64, batch_size=4, tokenizer=BPE(300))
print(text.prepare(progress=False).fingerprint)
"""


def prepare(source, home):
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, source],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "JAXPAR_CACHE": str(home)},
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_kill_9_costs_no_more_than_the_last_seconds(tmp_path, kind):
    path, n = tmp_path / f"a.{kind}", 120_000 if kind == "txt" else 30_000
    lines = (f"line {i} of some text, {i * i} long\n" for i in range(n))
    if kind == "jsonl":
        lines = (json.dumps({"text": line}) + "\n" for line in lines)
    path.write_text("".join(lines))
    digests = []
    for n_kills in (0, 2):
        home = tmp_path / f"cache{n_kills}"
        for k in range(n_kills):
            process = prepare(f"files:{path}", home)
            journals, seen = [], time.monotonic()
            while not any(j.read_text().count("{") > k for j in journals):
                assert process.poll() is None and time.monotonic() - seen < 60
                journals = [*home.glob(f"windows/.*/*/{part_writer.JOURNAL}")]
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        key = prepare(f"files:{path}", home).communicate()[0].decode().strip()
        found = files(home / "windows" / key)
        digests.append({name: hashlib.sha256(raw) for name, raw in found.items()})
    plain, killed = ({n: d.hexdigest() for n, d in each.items()} for each in digests)
    assert plain == killed and len(plain) == 10


MEMORY = r"""
import re, sys
from jaxpar.data import token_files
from jaxpar.data.source import Text
from jaxpar.data.tokenizer import Bytes

token_files.XZ_LIMIT = 0  # xz -9 takes some hundred MB, whatever the text.
text = Text(sys.argv[1], seq_len=64, batch_size=4, tokenizer=Bytes())
text.prepare(progress=False)
print(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc; run it on Linux")
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_memory_does_not_grow_with_the_text(tmp_path, kind):
    def kib(n):
        path = tmp_path / f"{n}.{kind}"
        line = "a line of text that is neither short nor very long " * 20
        line = json.dumps({"text": line}) if kind == "jsonl" else line
        path.write_text((line + "\n") * n)
        run = [sys.executable, "-c", MEMORY, f"files:{path}"]
        return int(subprocess.run(run, capture_output=True, check=True).stdout)

    # 8 and 40 MB of text.
    assert kib(40_000) < kib(8_000) + 12_000


def test_a_user_of_the_cache_without_locks_is_left_alone(home, monkeypatch):
    """Where it is seen that another process prepares, this one does so by itself."""
    expected = files(write(TOKENIZERS["bpe"], "a"))
    path = home / "windows" / token_files.identity("b", TOKENIZERS["bpe"])
    folder = path.with_name(f".{path.name}-unfinished")
    folder.mkdir()
    (folder / ".user").write_text("1 another machine")
    assert files(write(TOKENIZERS["bpe"], "b")) == expected
    assert (folder / ".user").exists()
