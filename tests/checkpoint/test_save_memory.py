"""Two hundred saves take no more memory, threads or open files than five.

pytest -m slow tests/checkpoint/test_save_memory.py
"""

import json
import os
import subprocess
import sys

import pytest

KEPT = """
import gc, json, os, sys, threading
from pathlib import Path

from jaxpar.checkpoint.manager import Checkpoints
from tests.checkpoint.test_full_disk import big

PAGE = os.sysconf("SC_PAGE_SIZE")


def now():
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    counts = threading.active_count(), len(os.listdir("/proc/self/fd"))
    return resident, len(gc.get_objects()), *counts


saver, state, found = Checkpoints(Path(sys.argv[1]), keep=2), big(0), {}
for step in range(1, int(sys.argv[2]) + 1):
    # Async, as in training: each waits for the one before.
    saver.save(step, state, memory={"n": step}, best=step % 50 == 0)
    if step in (5, 20, 50, 100, 200, 400):
        saver.wait()
        found[step] = now()
saver.close()
print(json.dumps(found))
"""
MOST_GROWTH = 8 * 2**20
"""Bytes: 10 states of the test, where each save that is kept would add 200 of them."""
MOST_OBJECTS = 195
"""Of Python's: fewer than one for each save."""


def measured(folder, saves):
    # One arena, so that what is freed by one thread serves the others.
    env = {**os.environ, "MALLOC_ARENA_MAX": "1"}
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", KEPT, str(folder), str(saves)],
        capture_output=True,
        text=True,
        env=env,
        check=True,
        timeout=600,
    )
    return {int(step): each for step, each in json.loads(done.stdout).items()}


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux: /proc")
def test_two_hundred_saves_keep_nothing_that_five_do_not(tmp_path):
    found = measured(tmp_path / "c", 200)
    (few, few_objects, *few_handles), (many, objects, *handles) = found[5], found[200]
    assert handles == few_handles  # Threads and open files.
    assert objects - few_objects < MOST_OBJECTS, found
    assert many - few < MOST_GROWTH, found
