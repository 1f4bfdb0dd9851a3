"""What is known of a file is known until the file changes, and no longer.

pytest tests/files/test_kept.py
"""

import multiprocessing
import os

import pytest

from jaxpar import cache
from jaxpar.files import kept

WHAT = {"what": "text"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def trusting(monkeypatch):
    """Files that were just written are trusted, as older ones are."""
    monkeypatch.setattr(kept, "RESOLUTION_NS", 0)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one")
    return path


def answer(path, asked=None):
    """A file's text, and whether the file was read for it."""
    read = []

    def find_out():
        read.append(path.read_text())
        return read[0]

    return kept.answer(asked or WHAT, path, find_out), bool(read)


def entries():
    return [*(cache.root() / "kept").iterdir()]


@pytest.mark.usefixtures("trusting")
def test_a_file_is_read_once(file):
    assert answer(file) == ("one", True)
    assert answer(file) == ("one", False)
    assert answer(file, {"what": "else"}) == ("one", True)


def rewritten(path):
    path.write_text("two")


def with_its_old_time(path):
    times = path.stat()
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def replaced(path):
    other = path.with_name("b.txt")
    other.write_text("two")
    other.replace(path)


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("change", [rewritten, with_its_old_time, replaced])
def test_a_changed_file_is_read_again(file, change):
    answer(file)
    change(file)
    assert answer(file) == ("two", True)
    assert answer(file) == ("two", False)


def test_a_change_that_comes_too_fast_for_the_files_clock_is_seen(file, monkeypatch):
    class Coarse:
        """What FAT says of a file: its times are even numbers of seconds."""

        def __init__(self, path):
            real = os.lstat(path)
            self.st_dev, self.st_ino, self.st_size = real[2], real[1], real.st_size
            self.st_mtime_ns = self.st_ctime_ns = int(real.st_mtime) // 2 * 2 * 10**9

    monkeypatch.setattr(kept.os, "stat", Coarse)
    assert answer(file) == ("one", True)
    file.write_text("two")
    assert answer(file) == ("two", True)


@pytest.mark.usefixtures("trusting")
def test_what_changes_while_it_is_read_is_not_kept(file):
    def find_out():
        text = file.read_text()
        file.write_text("two")
        return text

    assert kept.answer(WHAT, file, find_out) == "one"
    assert answer(file) == ("two", True)


@pytest.mark.usefixtures("trusting")
def test_damage_costs_a_reading_and_no_more(file):
    answer(file)
    (entry,) = entries()
    whole = entry.read_bytes()
    for place in range(len(whole)):
        entry.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
        )
        assert answer(file)[0] == "one"
        entry.write_bytes(whole[:place])
        assert answer(file)[0] == "one"
    entry.unlink()
    assert answer(file) == ("one", True)


@pytest.mark.usefixtures("trusting")
def test_a_cache_that_cannot_be_written_keeps_nothing(file, tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPAR_CACHE", str(file))
    assert answer(file) == answer(file) == ("one", True)


@pytest.mark.usefixtures("trusting")
def test_a_file_that_is_gone_is_left_to_whoever_reads_it(tmp_path):
    with pytest.raises(FileNotFoundError):
        answer(tmp_path / "gone")


def keep_often(path, resolution):
    kept.RESOLUTION_NS = resolution
    for n in range(50):
        assert kept.answer({"n": n}, path, lambda n=n: [n] * 1_000) == [n] * 1_000


@pytest.mark.usefixtures("trusting")
def test_processes_may_keep_the_same_at_once(file):
    started = multiprocessing.get_context("spawn").Process
    processes = [started(target=keep_often, args=(file, 0)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert {entry.suffix for entry in entries()} == {".json"} and len(entries()) == 50
