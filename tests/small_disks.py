"""Disks that fill up, for tests: a limit on files, or a small file system."""

import contextlib
import os
import resource
import shutil
import subprocess

import pytest

FAILED_SAVES = [
    pytest.mark.usefixtures("garbage_is_collected"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]
"""Marks of tests in which saves fail: Orbax leaves coroutines that nobody awaits, of
which Python warns when it collects them, in whatever test that is."""
HOW = "a small file system needs root: unshare -Urm pytest -m 'slow or not slow' "


@contextlib.contextmanager
def files_of_at_most(n_bytes):
    """A block in which no file of this process can grow beyond some bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def small_disk(path, size):
    """A file system of its own at a path, such as one of size 4m; skips without root.

    Yields a function that gives it another size.
    """
    path.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if os.geteuid() or not shutil.which("mount"):
        pytest.skip(HOW)
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip(HOW)

    def resize(size):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(path)], check=True)

    try:
        yield resize
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
