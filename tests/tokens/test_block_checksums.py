"""A file with checksums gives what was written, or says where it is damaged."""

import os
import threading

import numpy as np
import pytest

from jaxpar.errors import DataWentBad, UserError
from jaxpar.tokens import block_checksums
from jaxpar.tokens.block_checksums import CheckedFile, ChecksumWriter

BLOCK = 64


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A file of 10 blocks and a half, its facts, and its content."""
    monkeypatch.setattr(block_checksums, "BLOCK_BYTES", BLOCK)
    content = np.random.default_rng(0).bytes(BLOCK * 10 + 30)
    with ChecksumWriter(tmp_path / "data") as file:
        for start in range(0, len(content), 50):
            file.write(content[start : start + 50])
    return tmp_path / "data", file.facts, content


def opened(stored):
    path, facts, _ = stored
    return CheckedFile(path, facts, preparation=path.parent)


def flip(path, place, bit=0):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1 << bit
    path.write_bytes(raw)


def test_any_part_is_read_as_it_was_written(stored):
    *_, content = stored
    file = opened(stored)
    for start, stop in [(0, 1), (63, 65), (0, len(content)), (650, 670), (9, 9)]:
        assert file.read(start, stop) == content[start:stop]
    assert file.read_all().tobytes() == content


@pytest.mark.parametrize("place", [0, 63, 64, 500, 10 * BLOCK, 10 * BLOCK + 29])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_flipped_bit_is_found_when_its_block_is_first_read(stored, place, bit):
    path, _, content = stored
    flip(path, place, bit)
    first = place // BLOCK * BLOCK
    file = opened(stored)
    if first:
        assert file.read(0, first) == content[:first]
    said = f"data is damaged: bytes {first} to {min(first + BLOCK, len(content))} "
    # A neighbour in the same block is not trusted either.
    for start in (place, first):
        with pytest.raises(DataWentBad, match=said + f".*rm -r {path.parent}`"):
            file.read(start, start + 1)
    with pytest.raises(DataWentBad, match=said):
        opened(stored).read_all()
    with pytest.raises(DataWentBad, match=said):
        opened(stored).check_all()


def test_a_block_is_checked_once(stored, monkeypatch):
    checked = []

    def crc32(raw, value=0):
        checked.append(len(raw))
        return real(raw, value)

    real = block_checksums.zlib.crc32
    file = opened(stored)
    monkeypatch.setattr(block_checksums.zlib, "crc32", crc32)
    for _ in range(3):
        file.read(70, 140)
    assert checked == [BLOCK, BLOCK]
    file.check_all()
    file.check_all()
    assert len(checked) == 11


@pytest.mark.parametrize("n", [0, 5, 64, 300, 669])
def test_a_file_cut_short_while_it_is_open_is_an_error_not_a_signal(stored, n):
    path, _, content = stored
    file = opened(stored)
    file.check_all()
    os.truncate(path, n)
    with pytest.raises(DataWentBad, match=f"cut short.*ends at byte {n} of 670"):
        file.read(0, len(content))


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_of_another_size_is_refused_when_it_is_opened(stored, change):
    path, _, content = stored
    os.truncate(path, len(content) + change)
    with pytest.raises(DataWentBad, match=f"has {670 + change} bytes, not 670"):
        opened(stored)


@pytest.mark.parametrize("place", [0, 43])
def test_damaged_checksums_are_not_taken_for_damaged_data(stored, place):
    flip(stored[0].with_name("data.crc32"), place)
    with pytest.raises(DataWentBad, match=r"data.crc32 is damaged"):
        opened(stored)


def test_checksums_that_are_gone_are_named(stored):
    stored[0].with_name("data.crc32").unlink()
    with pytest.raises(DataWentBad, match=r"data.crc32 cannot be read \(No such file"):
        opened(stored)


def test_a_file_that_others_may_not_read_is_not_called_damaged(tmp_path):
    error = PermissionError(13, "Permission denied")
    found = block_checksums.unreadable(tmp_path / "x", error, preparation=tmp_path)
    assert isinstance(found, UserError) and "JAXPAR_CACHE" in str(found)


def test_threads_read_the_same_as_one(stored):
    *_, content = stored
    file, wrong = opened(stored), []

    def read():
        for start in range(0, 640, 7):
            if file.read(start, start + 30) != content[start : start + 30]:
                wrong.append(start)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
