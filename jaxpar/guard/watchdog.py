"""The watchdog: ends a process that makes no progress, and shows where it hangs.

A thread looks at what `jaxpar.guard.phases` says. Where a phase exceeds its limit it
prints the stacks of all threads and ends the process with status 42. Where C code holds
the interpreter's lock no thread can run; then a child process
(`jaxpar.guard.supervisor`) makes the process print its stacks, and ends it.
"""

import contextlib
import faulthandler
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from types import FrameType

from jaxpar.errors import HANGS
from jaxpar.guard import supervisor
from jaxpar.guard.limits import Limits, Pace
from jaxpar.guard.phases import PHASES, PROCESS, Phase, Phases
from jaxpar.guard.stopping import flush
from jaxpar.guard.supervisor import TICK_SECONDS, Quiet, Slot

PATIENCE_SECONDS = 10.0
"""How much longer than the thread the child waits."""
FLUSH_SECONDS = 1.0
"""How long what was printed may take to get out."""
STACKS_SIGNAL = signal.SIGUSR2
"""Makes a watched process print the stacks of all threads, and go on."""
NOT_FOR_THE_CHILD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
DEBUGGERS = ("pdb", "bdb", "pydevd", "_pydevd_bundle", "_pydev_bundle", "debugpy")
COMPILER = "jax._src.compiler"


class Watchdog:
    """What watches this process, until it is closed.

    record: what says what the process does. patience: seconds beyond a limit after
    which the child acts.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        record: Phases = PROCESS,
        patience: float = PATIENCE_SECONDS,
    ):
        self._limits, self._record, self._pace = limits, record, Pace()
        self._before: Phase = "start"
        with _memory() as file:
            os.write(file, bytes(supervisor.SHARED_BYTES))
            self._shared = supervisor.shared_numbers(file)
            self._follow(record.present(), False)
            stacks = _print_stacks_on_signal()
            self._child = _start_child(file, stacks, patience)
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, name="jaxpar-watchdog", daemon=True
        )
        self._follower, record.follower = record.follower, self._follow
        self._thread.start()

    def close(self) -> None:
        """Watches no longer."""
        self._record.follower = self._follower
        self._closed.set()
        self._thread.join()
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()

    def _follow(self, phase: Phase, progress: bool) -> None:
        """Notes a change of phase, or progress; called by the main thread."""
        if progress and phase in ("compute", "compile"):
            spent = self._record.seconds()
            at = spent["compute"] + spent["data"] + spent["save"]
            self._pace.finish(at, learn=phase == "compute")
        elif phase == "compute" and self._before not in ("evaluate", "save", "compute"):
            self._pace.begin()
        self._before = phase
        # First of all the change, so that no time counts for the new limit.
        self._shared[Slot.CHANGES] += 1
        self._shared[Slot.PHASE] = PHASES.index(phase)
        self._shared[Slot.LIMIT] = self._limit(phase)

    def _limit(self, phase: Phase) -> float:
        if phase == "compute":
            return self._pace.limit(self._limits)
        return getattr(self._limits, phase)

    def _watch(self) -> None:
        quiet = Quiet(self._shared)
        while not self._closed.wait(TICK_SECONDS):
            if not quiet.look():
                continue
            modules = _modules_that_run()
            if modules & set(DEBUGGERS):
                self._shared[Slot.CHANGES] += 1  # Someone is looking at it.
            elif COMPILER in modules and quiet.seconds <= self._limits.compile:
                # A program of another shape, outside the phase for it.
                self._shared[Slot.LIMIT] = self._limits.compile
            else:
                self._end(quiet.seconds)

    def _end(self, seconds: float) -> None:
        phase, limit = self._record.present(), self._shared[Slot.LIMIT]
        os.write(
            2,
            f"\njaxpar: watchdog: no progress for {seconds:.0f} s in the phase "
            f"{phase} (its limit is {limit:.0f} s), so process {os.getpid()} on "
            f"{os.uname().nodename} ends with status {HANGS}. The stacks of its "
            "threads follow; the same command resumes from the newest checkpoint, "
            f"--watchdog auto,{phase}=SECONDS allows more.\n".encode(),
        )
        faulthandler.dump_traceback(2, all_threads=True)
        # In a thread, since the one that hangs may hold the stream's lock.
        flushing = threading.Thread(target=flush, daemon=True)
        flushing.start()
        flushing.join(FLUSH_SECONDS)
        os._exit(HANGS)


@contextlib.contextmanager
def watching(limits: Limits | None) -> Iterator[None]:
    """A block that is watched; with None, in a notebook or a debugger it is not."""
    if limits is None or is_interactive():
        yield
        return
    with contextlib.closing(Watchdog(limits)):
        yield


def is_interactive() -> bool:
    """Whether this is a notebook, a prompt or a debugger, where a person decides.

    >>> is_interactive()
    False
    """
    kernel = "ipykernel.kernelapp" in sys.modules and "IPython" in sys.modules
    if hasattr(sys, "ps1") or sys.flags.interactive or kernel:
        return True
    return "pydevd" in sys.modules or sys.gettrace() is not None


def _modules_that_run() -> set[str]:
    """The modules, and the packages, whose code stands on any thread's stack."""
    found = set()
    for thread, frame in sys._current_frames().items():
        each: FrameType | None = None if thread == threading.get_ident() else frame
        while each is not None:
            name = str(each.f_globals.get("__name__", ""))
            found |= {name, name.partition(".")[0]}
            each = each.f_back
    return found


@contextlib.contextmanager
def _memory() -> Iterator[int]:
    """A file in memory, where the system has them, for as long as the block lasts."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("jaxpar-watchdog")
        try:
            yield file
        finally:
            os.close(file)
        return
    with tempfile.TemporaryFile() as temporary:
        yield temporary.fileno()


def _print_stacks_on_signal() -> int:
    """Makes C code print the stacks on a signal; 0 where the signal is in use."""
    if signal.getsignal(STACKS_SIGNAL) is not signal.SIG_DFL:
        return 0
    faulthandler.register(STACKS_SIGNAL, file=2, all_threads=True)
    return int(STACKS_SIGNAL)


def _start_child(file: int, stacks: int, patience: float) -> subprocess.Popen[bytes]:
    words = [os.getpid(), file, stacks, patience, *PHASES]
    # A signal to the whole group is for the parent: the child inherits that it is
    # blocked, and ends with the parent.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NOT_FOR_THE_CHILD)
    try:
        # -I and -S: without the environment's packages it starts in some 15 ms.
        return subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__, *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(file,),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
