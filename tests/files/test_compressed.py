"""A compressed file is the same data as the file that it holds.

pytest tests/files/test_compressed.py
"""

import bz2
import gzip
import json
import lzma
import random
import sys

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from jaxpar.errors import UserError
from jaxpar.sources.registry import find_kind, open_source
from tests.small_disks import files_of_at_most

PACK = {
    ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".zst": lambda raw: zstandard.ZstdCompressor().compress(raw),
}  # fmt: skip
LINES = [f"line {i} of a text → Öl\n" for i in range(9_000)]


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """The same records as files of each kind."""
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "a.txt").write_text("".join(LINES))
    (folder / "a.jsonl").write_text(
        "".join(json.dumps({"text": x}) + "\n" for x in LINES)
    )
    (folder / "a.csv").write_text("text\n" + "".join(LINES))
    (folder / "a.tsv").write_text("text\n" + "".join(LINES))
    pyarrow.parquet.write_table(pyarrow.table({"text": LINES}), folder / "a.parquet")
    return folder


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv", "tsv", "parquet"])
@pytest.mark.parametrize("suffix", PACK)
def test_it_is_the_same_data_as_the_plain_file(plain, tmp_path, kind, suffix):
    raw = (plain / f"a.{kind}").read_bytes()
    (tmp_path / f"a.{kind}{suffix}").write_bytes(PACK[suffix](raw))
    packed = open_source(f"files:{tmp_path}/a.*")
    expected = open_source(f"files:{plain}/a.{kind}")
    assert type(packed) is type(expected)
    assert packed.fingerprint() == expected.fingerprint()
    ours, theirs = packed.documents(), expected.documents()
    for part in ("train", "heldout"):
        assert [d.text for d in ours[part]] == [d.text for d in theirs[part]]


@pytest.mark.parametrize("suffix", PACK)
def test_it_is_known_by_its_first_bytes_and_read_in_all_its_frames(tmp_path, suffix):
    raw = "".join(LINES).encode()
    (tmp_path / "a.txt").write_bytes(PACK[suffix](raw) + PACK[suffix](b"the end\n"))
    corpus = open_source(f"files:{tmp_path}/a.txt", parts=("every",))
    assert corpus.documents()["every"][0].text == raw + b"the end\n"


@pytest.mark.parametrize("suffix", PACK)
def test_a_damaged_file_is_refused_and_named(tmp_path, suffix):
    (tmp_path / f"a.txt{suffix}").write_bytes(PACK[suffix](b"a line\n" * 99)[:-9])
    with pytest.raises(UserError, match=rf"a\.txt\{suffix} cannot be .*copy it again"):
        open_source(f"files:{tmp_path}/*")


@pytest.mark.parametrize("suffix", PACK)
def test_a_plain_file_with_a_suffix_of_compression_is_refused_as_that(tmp_path, suffix):
    (tmp_path / f"a.txt{suffix}").write_bytes(b"a line\n" * 99)
    with pytest.raises(UserError, match=rf"not compressed.* ends in \{suffix}; rename"):
        open_source(f"files:{tmp_path}/*")


def test_the_first_bytes_count_more_than_the_suffix(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(PACK[".zst"](b"a line\n" * 99))
    (tmp_path / "b.txt.bz2").write_bytes(bz2.compress(b"b line\n" * 99, 1))
    corpus = open_source(f"files:{tmp_path}/*", parts=("every",))
    assert [d.name for d in corpus.documents()["every"]] == ["a.txt", "b.txt"]


@pytest.mark.parametrize("suffix", PACK)
def test_a_cache_without_room_is_named_and_not_the_file(plain, tmp_path, suffix):
    raw = random.Random(suffix).randbytes(1 << 20).hex().encode()
    (tmp_path / f"a.txt{suffix}").write_bytes(PACK[suffix](raw))
    with files_of_at_most(1 << 19):
        with pytest.raises(UserError, match=r"the cache .*/cache .*set JAXPAR_CACHE"):
            open_source(f"files:{tmp_path}/a.txt{suffix}")
    assert open_source(f"files:{tmp_path}/a.txt{suffix}").documents()


def test_a_file_beside_its_compressed_copy_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a line\n")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a line\n"))
    with pytest.raises(UserError, match=r"a\.txt is found twice.*compressed"):
        open_source(f"files:{tmp_path}")


def test_a_changed_file_is_unpacked_again(tmp_path):
    for text in (b"one\n" * 9, b"other\n" * 9):
        (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text))
        corpus = open_source(f"files:{tmp_path}/a.txt.gz", parts=("every",))
        assert corpus.documents()["every"][0].text == text


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python itself reads zstd")
def test_without_zstd_the_line_to_type_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "new.txt.zst").write_bytes(PACK[".zst"](b"another line\n"))
    with pytest.raises(UserError, match=r'pip install -e "\.\[zstd\]"'):
        find_kind(f"files:{tmp_path}/new.txt.zst")
