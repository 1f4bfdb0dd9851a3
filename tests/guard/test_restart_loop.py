"""The README's shell loop restarts what a restart can help, and nothing else.

pytest tests/guard/test_restart_loop.py
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

import jaxpar

README = Path(jaxpar.__file__).parent.parent / "README.md"


@pytest.fixture
def loop(tmp_path):
    """Runs the loop with a jaxpar that ends with these statuses, one after another.

    Returns the loop's own status, and how often the command ran.
    """
    section = README.read_text().partition("## Restarting")[2]
    found = re.search(r"```sh\n(tries=0\nuntil .*?)```", section, re.DOTALL)
    assert found is not None
    fake = tmp_path / "jaxpar"
    fake.write_text(
        "#!/bin/sh\n"
        f"echo run >> {tmp_path}/runs\n"
        f"status=$(sed -n $(wc -l < {tmp_path}/runs)p {tmp_path}/statuses)\n"
        'if [ "$status" -gt 128 ]; then kill -$((status - 128)) $$; fi\n'
        'exit "$status"\n'
    )
    fake.chmod(0o755)

    def run(*statuses: int) -> tuple[int, int]:
        (tmp_path / "runs").unlink(missing_ok=True)
        (tmp_path / "statuses").write_text("".join(f"{s}\n" for s in statuses))
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        script = found[1].replace("sleep 10", ":")
        ended = subprocess.run(
            ["sh", "-c", script], env={**os.environ, "PATH": path}, timeout=30
        )
        return ended.returncode, len((tmp_path / "runs").read_text().splitlines())

    return run


def test_it_goes_on_until_the_run_is_done(loop):
    assert loop(0) == (0, 1)
    assert loop(75, 42, 134, 137, 0) == (0, 5)
    assert loop(*[75] * 20, 0) == (0, 21)


@pytest.mark.parametrize("status", [2, 3, 4, 43, 130, 143])
def test_it_stops_where_the_same_would_happen_again(loop, status):
    assert loop(75, status, 0) == (status, 2)


def test_another_failure_is_tried_a_few_times(loop):
    assert loop(1, 42, 1, 0) == (0, 4)
    assert loop(*[1] * 9) == (1, 5)
