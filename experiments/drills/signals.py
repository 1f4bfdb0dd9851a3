"""Does a signal at any moment of a cold start end the command as it says it does?

    python -m experiments.drills.signals            # 20 moments, SIGINT and SIGTERM

Each time a fresh process with an empty cache gets one signal, half a second later than
the one before. Expected: it ends within its grace with 130 or 143 while nothing is
unsaved, else with 75 and its newest step saved; where the signal comes before Python
runs jaxpar's first line, it ends by the signal itself.
"""

import argparse
import collections
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

EXPERIMENT = Path(__file__).with_name("tiny.py")
STATED = {
    signal.SIGINT: (130, 75, -signal.SIGINT),
    signal.SIGTERM: (143, 75, -signal.SIGTERM),
}


class Stop(NamedTuple):
    """What a signal did."""

    name: str
    after: float
    """Seconds from the start of the process to the signal."""
    status: int | None
    """None where the process had not ended within its grace."""
    took: float
    said: str
    """The last line that the process printed."""


def stop_after(seconds: float, number: signal.Signals, *, grace: float) -> Stop:
    """Starts a run with nothing cached, and sends it one signal."""
    folder = Path(tempfile.mkdtemp(prefix="jaxpar-drill-"))
    command = [
        sys.executable, "-m", "jaxpar", "pretrain", str(EXPERIMENT),
        "--run-dir", str(folder / "run"), "--num-steps", "1000000",
        "--save-every", "1000000", "--eval-every", "1000000", "--grace", str(grace),
    ]  # fmt: skip
    env = {**os.environ, "JAXPAR_CACHE": str(folder / "cache")}
    with open(folder / "out", "w+") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, env=env)
        time.sleep(seconds)
        began = time.monotonic()
        child.send_signal(number)
        try:
            status = child.wait(grace + 5)
        except subprocess.TimeoutExpired:
            status = None
            child.kill()
            child.wait()
        took = time.monotonic() - began
        out.seek(0)
        lines = out.read().strip().splitlines()
    shutil.rmtree(folder)
    return Stop(number.name, seconds, status, took, lines[-1] if lines else "")


def main() -> int:
    """Prints a line for each signal, and how many ended as stated."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--apart", type=float, default=0.5, help="seconds")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds")
    asked = parser.parse_args()
    seen: collections.Counter = collections.Counter()
    for number in STATED:
        for k in range(asked.moments):
            stop = stop_after((k + 1) * asked.apart, number, grace=asked.grace)
            good = stop.status in STATED[number] and stop.took <= asked.grace
            seen[good] += 1
            print(
                f"{stop.name:8} after {stop.after:5.1f} s: status {stop.status}, "
                f"{stop.took:.1f} s later{'' if good else '  NOT AS STATED'}; "
                f"{stop.said}",
                flush=True,
            )
    print(f"{seen[True]} of {sum(seen.values())} ended as stated")
    return 0 if not seen[False] else 1


if __name__ == "__main__":
    sys.exit(main())
