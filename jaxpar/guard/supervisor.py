"""The child process that ends its parent when no Python code of it can run.

C code that never returns may hold the interpreter's lock: then no thread of Python
can act. This child shares with its parent three numbers (`Slot`), which the parent's
main thread writes. Run as a file, it imports no more than it must, and never jax:

    supervisor.py PARENT_PID SHARED_FD STACKS_SIGNAL PATIENCE PHASE ...
"""

import contextlib
import enum
import mmap
import os
import select
import signal
import sys
import time

TICK_SECONDS = 0.5
"""How often a watcher looks."""
STACKS_SECONDS = 1.0
"""What a process gets to print its stacks."""
ABORT_SECONDS = 10.0
"""What it gets to end by SIGABRT, before SIGKILL."""


class Slot(enum.IntEnum):
    """The places of the shared numbers."""

    CHANGES = 0
    """Grows with every progress and every change of phase."""
    LIMIT = 1
    """The seconds that the present phase may take without progress."""
    PHASE = 2
    """The number of the present phase."""


SHARED_BYTES = 8 * len(Slot)


def shared_numbers(fd: int) -> "memoryview[float]":
    """The shared numbers; each is written and read as a whole."""
    return memoryview(mmap.mmap(fd, SHARED_BYTES)).cast("d")


class Quiet:
    """For how long a process has changed nothing although it could run.

    Time in which the watcher itself did not run (a machine that sleeps, a container
    that is frozen) does not count.
    """

    def __init__(self, shared: "memoryview[float]"):
        self._shared, self._changes = shared, shared[Slot.CHANGES]
        self.seconds, self._looked = 0.0, time.monotonic()

    def look(self, *, stopped: bool = False) -> bool:
        """Looks again; returns whether the limit is exceeded."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 2 * TICK_SECONDS), now
        if self._shared[Slot.CHANGES] != self._changes:
            self._changes, self.seconds = self._shared[Slot.CHANGES], 0.0
        elif not stopped:
            self.seconds += passed
        return self.seconds > self._shared[Slot.LIMIT]


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by SIGSTOP or a debugger; False without /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except OSError:
        return False


def supervise(
    pid: int, fd: int, stacks_signal: int, patience: float, names: list[str]
) -> None:
    """Watches until the parent ends, which closes this process's standard input.

    stacks_signal: makes the parent print its stacks; 0 if nothing does. patience:
    seconds beyond a limit, in which the parent may act itself.
    """
    shared = shared_numbers(fd)
    quiet = Quiet(shared)
    while not _ended(pid, TICK_SECONDS):
        beyond = quiet.look(stopped=is_stopped(pid))
        if not beyond or quiet.seconds <= shared[Slot.LIMIT] + patience:
            continue
        _say(
            f"no progress for {quiet.seconds:.0f} s in the phase "
            f"{names[int(shared[Slot.PHASE])]}, and no Python code can run: C code "
            f"holds the interpreter's lock. Process {pid} prints its stacks and ends "
            "by SIGABRT (status 134); the same command resumes."
        )
        if stacks_signal:
            os.kill(pid, stacks_signal)
            if _ended(pid, STACKS_SECONDS):
                return
            if quiet.look() is False:
                _say(f"process {pid} runs again, and goes on.")
                continue
        os.kill(pid, signal.SIGABRT)
        if not _ended(pid, ABORT_SECONDS):
            _say(f"SIGABRT did not end process {pid}; now SIGKILL (status 137).")
            os.kill(pid, signal.SIGKILL)
        return


def _ended(pid: int, seconds: float) -> bool:
    """Whether the parent ends within some seconds."""
    # A process that the parent has forked may still hold the other end of the pipe.
    return bool(select.select([0], [], [], seconds)[0]) or os.getppid() != pid


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"\njaxpar: watchdog: {text}\n".encode())


if __name__ == "__main__":
    _pid, _fd, _stacks_signal = map(int, sys.argv[1:4])
    supervise(_pid, _fd, _stacks_signal, float(sys.argv[4]), sys.argv[5:])
