"""A text of one long line takes little more memory than its bytes."""

import subprocess
import sys

import pytest

MEGABYTES = 48
WORDS = b"some words of a text without a line's end, again and again, "
# Peak of the process's memory, in bytes, without what imports took before.
MEASURE = """
import sys
from jaxpar.data.source import score
from jaxpar.data.tokenizer import ByteTokenizer
from jaxpar.sources.registry import open_source

def memory(name):
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(l for l in lines if l.startswith(name)).split()[1])

source, stage, before = sys.argv[1], sys.argv[2], memory("VmRSS:")
if stage == "fingerprint":
    open_source(source).fingerprint()
if stage == "documents":
    for documents in open_source(source).documents().values():
        assert all(len(document.text) for document in documents)
print(memory("VmHWM:") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is Linux's")
@pytest.mark.parametrize("stage", ["fingerprint", "documents"])
@pytest.mark.parametrize("name", ["a.txt", "b.unknown"])
def test_a_line_takes_no_more_than_twice_its_bytes(tmp_path, stage, name):
    long = WORDS * (MEGABYTES * 1_000_000 // len(WORDS))
    (tmp_path / name).write_bytes(long + b"\nheld out\n" * 10)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, f"files:{tmp_path}/{name}", stage],
        env={"PYTHONPATH": ":".join(sys.path), "JAXPAR_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * len(long)
