"""One writer at a time, and none that is dead."""

import errno
import os
import subprocess
import sys

import pytest

from jaxpar.errors import UserError
from jaxpar.guard.lock import RunLock

HOLD = """
import sys, time
from jaxpar.guard.lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_who_the_first_is(tmp_path):
    with RunLock(tmp_path / "run"):
        with pytest.raises(UserError, match=f"in use by pid {os.getpid()} on "):
            RunLock(tmp_path / "run").__enter__()
    with RunLock(tmp_path / "run"):
        pass


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def has_none(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", has_none)
    with RunLock(tmp_path / "run"):
        assert "has no locks (No locks available)" in capsys.readouterr().err


def test_a_killed_process_holds_nothing(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"pid {holder.pid} "):
            RunLock(tmp_path).__enter__()
    finally:
        holder.kill()
        holder.communicate()
    with RunLock(tmp_path):
        pass
