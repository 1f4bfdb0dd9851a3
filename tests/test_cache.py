"""What is in the cache is whole, readable as the umask says, and nothing else stays."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxpar import atomic, cache
from jaxpar.data.source import Text
from jaxpar.data.tokenizer import BPE
from jaxpar.errors import UserError

BUILD = """
import pathlib, sys, time
from jaxpar import cache

def build(directory):
    (directory / "half").write_text("made")
    print("building", flush=True)
    time.sleep(60)

cache.build_once(pathlib.Path(sys.argv[1]), build)
"""
PREPARE = """
import sys, time
from jaxpar.tokens import part_writer
from jaxpar.data.source import Text

def encoded(*args):
    for one in real(*args):
        print("tokenising", flush=True)
        yield one
        time.sleep(60)

real, part_writer._encoded = part_writer._encoded, encoded
Text(sys.argv[1], seq_len=32, batch_size=4).prepare(progress=False)
"""


def begun(code, *args):
    """A process that has printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert process.stdout and process.stdout.readline()
    return process


def killed(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def make(directory):
    (directory / "whole").write_text("made")


def names(path):
    return sorted(found.name for found in path.iterdir())


def aged(path, seconds):
    """Makes a directory and what is in it look as old."""
    then = time.time() - seconds
    for found in [*path.rglob("*"), path]:
        os.utime(found, (then, then))


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path):
    process = begun(BUILD, tmp_path / "made")
    killed(process)
    assert len(names(tmp_path)) == 1
    cache.build_once(tmp_path / "another", make)
    assert names(tmp_path) == ["another"]
    assert names(cache.build_once(tmp_path / "made", make)) == ["whole"]


def test_what_a_living_process_builds_is_left_alone(tmp_path):
    process = begun(BUILD, tmp_path / "made")
    try:
        (its,) = names(tmp_path)
        aged(tmp_path / its, 10 * cache.ABANDONED_SECONDS)
        cache.build_once(tmp_path / "another", make)
        assert names(tmp_path) == sorted([its, "another"])
    finally:
        killed(process)


def refuse(directory):
    raise AssertionError(f"{directory} is built a second time")


def test_who_wants_what_another_builds_waits_for_it_and_says_so(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(cache, "LOOKS_BEFORE_A_LINE", 0)
    process = begun(BUILD.replace("60", "0.5"), tmp_path / "made")
    assert names(cache.build_once(tmp_path / "made", refuse)) == ["half"]
    said = f"made is being made by process {process.pid} on .*; this one waits for it"
    assert re.search(said, capfd.readouterr().err)
    killed(process)


def test_the_wait_for_a_build_ends_with_its_process(tmp_path):
    process = begun(BUILD, tmp_path / "made")
    threading.Timer(0.3, process.kill).start()
    assert names(cache.build_once(tmp_path / "made", make)) == ["whole"]
    killed(process)


def test_of_many_processes_one_builds(tmp_path):
    code = BUILD.replace("60", "0.3")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "made"],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )
        for _ in range(4)
    ]
    printed = [process.communicate()[0] for process in processes]
    assert sorted(printed) == [b"", b"", b"", b"building\n"]


@pytest.mark.parametrize("marked", [True, False])
def test_what_another_machine_builds_is_left_for_a_day(tmp_path, marked):
    its = tmp_path / ".made-a_b12cde"
    its.mkdir()
    (its / "half").write_text("made")
    if marked:
        (its / cache.IN_USE).write_text("another machine")
    aged(its, cache.ABANDONED_SECONDS - 60)
    cache.build_once(tmp_path / "one", make)
    assert names(tmp_path) == [its.name, "one"]
    # One new file is enough to count as in use.
    aged(its, cache.ABANDONED_SECONDS + 60)
    (its / "more").write_text("made")
    cache.build_once(tmp_path / "two", make)
    assert names(tmp_path) == [its.name, "one", "two"]
    aged(its, cache.ABANDONED_SECONDS + 60)
    cache.build_once(tmp_path / "three", make)
    assert names(tmp_path) == ["one", "three", "two"]


@pytest.mark.parametrize("name", ["made-12345678", ".hidden", ".git-config", "0" * 16])
def test_nothing_else_is_removed(tmp_path, name):
    (tmp_path / name).mkdir()
    aged(tmp_path / name, 10 * cache.ABANDONED_SECONDS)
    cache.build_once(tmp_path / "one", make)
    assert names(tmp_path) == sorted([name, "one"])


def test_the_same_command_after_a_killed_preparation_prepares(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_bytes(b"a line of text\n" * 500)
    source = f"files:{tmp_path}/a.txt"
    killed(begun(PREPARE, source))
    windows = tmp_path / "cache" / "windows"
    (left,) = names(windows)
    assert left.startswith(".")
    found = Text(source, seq_len=32, batch_size=4).prepare()
    assert names(windows) == [found.fingerprint]
    assert not [*windows.rglob(cache.IN_USE)]


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_every_entry_has_the_permissions_that_the_umask_leaves(
    tmp_path, monkeypatch, umask
):
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_bytes(b"a line of text\n" * 500)
    previous = os.umask(umask)
    try:
        source = f"files:{tmp_path}/a.txt"
        Text(source, seq_len=32, batch_size=4, tokenizer=BPE(300)).prepare()
    finally:
        os.umask(previous)
    found = sorted((tmp_path / "cache").rglob("*"))
    assert {"windows", "tokenizers", "tokens.bin"} <= {p.name for p in found}
    modes = {p: p.stat().st_mode & 0o777 for p in found}
    wanted = {p: (0o777 if p.is_dir() else 0o666) & ~umask for p in found}
    assert modes == wanted


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    def build(directory):
        (directory / "below").mkdir()
        for name in ("a", "below/b"):
            (directory / name).write_text("made")

    def fsync(file):
        done.append(os.fstat(file).st_ino)

    def replace(source, target):
        done.append("renamed")
        rename(source, target)

    done, rename = [], os.replace
    monkeypatch.setattr(atomic.os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    cache.build_once(tmp_path / "made", build)
    a, b, below, made, folder = (
        (tmp_path / name).stat().st_ino
        for name in ("made/a", "made/below/b", "made/below", "made", ".")
    )
    assert done == [b, below, a, made, "renamed", folder]


def test_a_cache_that_cannot_be_written_names_the_setting(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file cannot be written .*JAXPAR_CACHE"):
        cache.build_once(tmp_path / "file" / "made", make)
