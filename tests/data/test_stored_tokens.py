"""Prepared data that is damaged says so, and what it says to do mends it."""

import json
import os
import random
import re
import shutil
import subprocess

import jax
import numpy as np
import pytest

from jaxpar import cache
from jaxpar.cli import main
from jaxpar.data import prepare, stored_tokens
from jaxpar.data.loader import batches
from jaxpar.data.source import Pairs, Text, score
from jaxpar.data.task import causal
from jaxpar.data.tokenizer import BPE, ByteTokenizer
from jaxpar.errors import DataWentBad
from jaxpar.partition.layout import Layout
from jaxpar.tokens import block_checksums

FILES = ["meta.json", "tokens.bin", "items.npy", "tokens.bin.crc32", "items.npy.crc32"]
LINES = b"".join(b"line %d of a text\n" % i for i in range(100))
SIZES = {"seq_len": 32, "batch_size": 8}

EXPERIMENT = """
from jaxpar import AdamW, Layout, Pretrain, Text
from jaxpar.models import sizes

experiment = Pretrain(
    model=sizes.gpt(vocab_size=259, n_layers=1, d_embed=8, n_heads=1, max_positions=32),
    data=Text("{}", seq_len=32, batch_size=8),
    optim=AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=1),
    layout=Layout.parse("data=8"),
    num_steps=2,
)
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Text in files, with a cache of its own."""
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path / "the cache"))
    for i in range(30):
        (tmp_path / f"{i}.txt").write_bytes(b"file %d\n" % i + LINES)
    return Text(f"files:{tmp_path}/*.txt", **SIZES)


def folder(source):
    return cache.root() / "windows" / source.prepare().fingerprint / "train"


def flip(path, place, bit):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)


def without_checksums(path):
    """Makes a preparation what older versions of jaxpar wrote."""
    meta = stored_tokens.read_meta(path)
    del meta["files"], meta["in_both_parts"], meta["prompt_tokens"]
    (path / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    for file in path.glob("*.crc32"):
        file.unlink()


def ids(windows):
    return np.concatenate([window.tokens for window in windows])


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_in_any_file_is_refused(source, name):
    path = folder(source) / name
    size, draw = path.stat().st_size, random.Random(0)
    for place in {0, size - 1, *(draw.randrange(size) for _ in range(60))}:
        bit = draw.randrange(8)
        flip(path, place, bit)
        with pytest.raises(DataWentBad, match=re.escape(str(path))):
            source.prepare()
        flip(path, place, bit)
    source.prepare()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("left", [0, 1, 100])
def test_a_short_file_is_refused(source, name, left):
    path = folder(source) / name
    os.truncate(path, min(left, path.stat().st_size - 1))
    with pytest.raises(DataWentBad, match=re.escape(str(path))):
        source.prepare()


@pytest.mark.parametrize("name", [*FILES, ""])
def test_the_printed_remedy_mends_what_is_damaged_or_gone(source, name):
    before = ids(source.prepare().train)
    path = folder(source) / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(DataWentBad) as error:
        source.prepare()
    (command,) = re.findall(r"`(rm -r .*)`", str(error.value))
    subprocess.run(command, shell=True, check=True)
    assert (ids(source.prepare().train) == before).all()


def test_the_remedy_of_a_damaged_tokenizer_works(source):
    source = Text(source.source, tokenizer=BPE(300), **SIZES)
    before = ids(source.prepare().train)
    files = sorted(cache.root().glob("tokenizers/*/*"))
    assert len(files) == 2
    for file in files:
        flip(file, file.stat().st_size // 2, 0)
        with pytest.raises(DataWentBad, match=file.parent.name) as error:
            source.prepare()
        (command,) = re.findall(r"`(rm -r .*)`", str(error.value))
        subprocess.run(command, shell=True, check=True)
        assert (ids(source.prepare().train) == before).all()


def test_a_large_file_is_checked_block_by_block_while_it_is_read(source, monkeypatch):
    path = folder(source)
    monkeypatch.setattr(stored_tokens, "CHECKED_BYTES", 0)
    monkeypatch.setattr(block_checksums, "BLOCK_BYTES", 1024)
    shutil.rmtree(path.parent)
    before = ids(source.prepare().train)
    flip(path / "tokens.bin", 5000, 3)
    train = source.prepare().train
    assert (train[0].tokens == before[:33]).all()
    with pytest.raises(DataWentBad, match="tokens.bin is damaged: bytes 4096 to 5120"):
        ids(train)


def test_the_loader_ends_with_status_3_where_a_file_is_cut_short(source):
    path, train = folder(source), source.prepare().train
    placed = Layout.parse("data=8").on(jax.devices())
    found = batches(train, causal, batch_size=8, seed=0, placed=placed)
    next(found)
    os.truncate(path / "tokens.bin", 10)
    with pytest.raises(DataWentBad, match=r"tokens.bin was cut short") as error:
        for _ in range(20):
            next(found)
    assert error.value.exit_status == 3


def test_an_id_beyond_the_largest_is_refused_where_it_is_read(source):
    path = folder(source)
    meta = stored_tokens.read_meta(path)
    stored_tokens.write_meta(path, {**meta, "max_id": 200})
    train = source.prepare().train
    with pytest.raises(DataWentBad, match=r"tokens.bin is damaged.* one is 25[78]"):
        ids(train)


@pytest.mark.parametrize("largest", [259, 60_000])
def test_a_largest_id_beyond_the_tokenizer_is_refused(source, largest):
    path = folder(source)
    meta = stored_tokens.read_meta(path)
    stored_tokens.write_meta(path, {**meta, "max_id": largest})
    with pytest.raises(DataWentBad, match=f"{largest}, while the tokenizer has 259"):
        source.prepare()


@pytest.mark.parametrize("checked", [0, stored_tokens.CHECKED_BYTES])
def test_items_too_many_for_memory_are_read_where_they_are_looked_up(
    source, monkeypatch, checked
):
    before = source.prepare()
    monkeypatch.setattr(stored_tokens, "ITEMS_IN_MEMORY", 5)
    monkeypatch.setattr(stored_tokens, "CHECKED_BYTES", checked)
    after = source.prepare()
    assert after.description == before.description
    for part in ("train", "heldout"):
        for ours, theirs in zip(
            getattr(after, part), getattr(before, part), strict=True
        ):
            for name in ("tokens", "segments", "positions", "weights"):
                assert (getattr(ours, name) == getattr(theirs, name)).all()
    path = folder(source) / "items.npy"
    flip(path, path.stat().st_size - 1, 3)
    with pytest.raises(DataWentBad, match=r"items.npy is damaged"):
        source.prepare().train[0]


def test_a_preparation_without_checksums_opens_as_the_same(source):
    before = source.prepare()
    without_checksums(folder(source))
    after = source.prepare()
    assert (ids(after.train) == ids(before.train)).all()
    assert after.description == before.description


@pytest.mark.parametrize("row", range(3))
def test_an_older_index_that_contradicts_itself_is_refused(source, row):
    path = folder(source) / "items.npy"
    n = stored_tokens.read_meta(path.parent)["items"]
    without_checksums(path.parent)
    # The second byte of the sixth end, prompt's length, or size.
    flip(path, 128 + 8 * (row * n + 5) + 1, 4)
    with pytest.raises(DataWentBad, match=r"items.npy is damaged: its entries contra"):
        source.prepare()


@pytest.mark.parametrize(("name", "place"), [("tokens.bin", 77), ("items.npy", 40)])
def test_other_damage_of_older_files_is_refused(source, name, place):
    path = folder(source) / name
    without_checksums(path.parent)
    flip(path, place, 1)
    with pytest.raises(DataWentBad, match=re.escape(str(path))):
        source.prepare()


def test_pairs_and_scored_sources_are_checked_too(source, tmp_path):
    rows = [{"prompt": f"say {i}", "answer": f"{i} is said"} for i in range(300)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    opened = [
        lambda: Pairs(f"files:{file}", **SIZES).prepare(ByteTokenizer()),
        lambda: score(f"files:{tmp_path}/1.txt", ByteTokenizer(), 32),
    ]
    for prepare_it in opened:
        seen = set(cache.root().glob("windows/*"))
        prepare_it()
        (made,) = set(cache.root().glob("windows/*")) - seen
        for items in made.glob("*/items.npy"):
            flip(items, 140, 2)
            with pytest.raises(DataWentBad, match=r"items.npy"):
                prepare_it()
            flip(items, 140, 2)


def test_the_fingerprint_of_prepared_data_is_what_it_was():
    found = prepare.token_files.identity("content", ByteTokenizer())
    versions = cache.versions("tokenizers", "tensorflow-datasets", "array-record")
    tokens = ByteTokenizer.fingerprint
    assert found == cache.key(
        format=1, content="content", tokenizer=tokens, versions=versions
    )


def test_a_command_on_damaged_items_ends_with_status_3(source, tmp_path, capsys):
    path = folder(source)
    flip(path / "items.npy", 130, 5)
    file = tmp_path / "experiment.py"
    file.write_text(EXPERIMENT.format(source.source))
    args = ["data", "prepare", str(file)]
    assert main(args) == 3
    assert "items.npy is damaged: bytes 0 to" in capsys.readouterr().err
