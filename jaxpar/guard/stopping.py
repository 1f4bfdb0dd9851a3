"""Requests to stop (SIGINT, SIGTERM), noticed whatever this process is doing.

A command calls `for_command` first of all. From then on a thread of its own learns of
each signal at once: while the main thread compiles, waits for a batch or for another
process, or is in any other call that does not return. Where nothing is unsaved the
process ends at once; else the training loop ends after its step, and saves. Without a
command (a notebook, a script) the loop itself handles signals while it runs.
"""

import contextlib
import enum
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from jaxpar.errors import FAILED
from jaxpar.tables import for_messages

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE_SECONDS = 120.0
"""How long after a signal a process may take to end its step and to save."""


class Unsaved(enum.Enum):
    """What would be lost if the process ended now, and what it does about a signal."""

    NOTHING = enum.auto()
    """Nothing: it ends at once."""
    STEPS = enum.auto()
    """Steps: the loop ends after this one, and saves."""
    END = enum.auto()
    """The loop has ended and is being saved: the process ends by itself."""


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self, leave: Callable[[int], Any] = lambda status: None):
        self.leave = leave
        """Ends the process with a status at once; does nothing in a notebook."""
        self.signal = ""
        """The first signal's name; "" before."""
        self.unsaved = Unsaved.NOTHING
        self.grace = GRACE_SECONDS
        self.agreement: Callable[[], bool] | None = None
        """Of several processes, which stop after the same step: `SharedStop.reached`
        of jaxpar.guard.shared_stop; each calls it at the same points."""
        self._asked = threading.Event()

    def asked(self) -> bool:
        """Whether a signal came to this process, or to another one of the run."""
        return self._asked.is_set()

    def reached(self) -> bool:
        """Whether to stop now; of several processes, all stop at the same call."""
        return self.agreement() if self.agreement else self.asked()

    def ask(self, name: str) -> None:
        """Asks to stop; a second request changes nothing.

        name: the signal's; "" where another reason ends the run with an error.
        """
        self.signal = self.signal or name
        self._asked.set()

    @property
    def prefix(self) -> str:
        """The signal's name before a message; "" where there was none."""
        return f"{self.signal}: " if self.signal else ""

    def what_follows(self) -> str:
        """What this process does about the request, in words."""
        if self.unsaved is Unsaved.END:
            return "the end of the run is being saved"
        who = "stopping all processes" if self.agreement else "stopping"
        if self.unsaved is Unsaved.NOTHING:
            return f"{who}; there is nothing to save"
        return f"{who} after this step, then saving"


_current: StopRequest | None = None


def current() -> StopRequest | None:
    """The request of the command that runs in this process, if one does."""
    return _current


@contextlib.contextmanager
def for_command(leave: Callable[[int], Any] = os._exit) -> Iterator[StopRequest]:
    """Handles signals for a command, until it ends.

    leave: ends the process with a status at once, from any thread. Outside the main
    thread, where Python allows no handlers, signals do what they did before.
    """
    request = StopRequest(leave)
    if not _in_main_thread():
        yield request
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    watcher = _Watcher(request)
    threading.Thread(
        target=watcher.watch, args=(read,), name="jaxpar-signals", daemon=True
    ).start()
    # Python hands a signal to the watcher only if it has a handler.
    with _as_current(request), _handlers(lambda number, frame: None):
        previous = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        try:
            yield request
        finally:
            watcher.done = True
            signal.set_wakeup_fd(previous)
            os.close(write)  # The thread reads the end of the pipe, and ends.


@contextlib.contextmanager
def for_loop() -> Iterator[StopRequest]:
    """The command's request; without a command, handles signals until the loop ends.

    A second signal then does what it did before: the first handlers are back.
    """
    if _current is not None:
        yield _current
        return
    request = StopRequest()
    if not _in_main_thread():
        yield request
        return

    def first(number: int, frame: FrameType | None) -> None:
        request.ask(signal.Signals(number).name)
        _say(request)
        restore()

    with _as_current(request), _handlers(first) as restore:
        yield request


class _Watcher:
    """Reads the numbers of signals from a pipe, in a thread of its own."""

    def __init__(self, request: StopRequest):
        self._request = request
        self.done = False

    def watch(self, read: int) -> None:
        """Acts on each signal until the pipe is closed."""
        while number := os.read(read, 1):
            if number[0] in SIGNALS:
                self._act(signal.Signals(number[0]))
        os.close(read)

    def _act(self, number: signal.Signals) -> None:
        request, first = self._request, not self._request.asked()
        request.ask(number.name)
        if not first:
            self._end(number, "stopped at once; what was saved before is intact")
            return
        _say(request)
        if request.agreement is None and request.unsaved is Unsaved.NOTHING:
            self._end(number)
            return
        timer = threading.Timer(request.grace, self._end_late, (number,))
        timer.daemon = True
        timer.start()

    def _end_late(self, number: signal.Signals) -> None:
        within = f"within {self._request.grace:.0f} s (--grace)"
        self._end(number, f"not stopped {within}, so ended now")

    def _end(self, number: signal.Signals, why: str = "") -> None:
        if self.done:
            return
        if why:
            print(f"jaxpar: {number.name}: {why}.", file=for_messages())
        flush()
        self._request.leave(status_of(number.name))


def flush() -> None:
    """Gets out what was printed, as far as that is possible."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def status_of(name: str) -> int:
    """The exit status of a process that a signal ends: 130 of SIGINT, 143 of SIGTERM.

    >>> status_of("SIGTERM"), status_of("")
    (143, 1)
    """
    return 128 + signal.Signals[name] if name else FAILED


def _say(request: StopRequest) -> None:
    ends_now = request.unsaved is Unsaved.NOTHING and request.agreement is None
    again = "" if ends_now else "; again to stop now"
    print(
        f"\njaxpar: {request.prefix}{request.what_follows()}{again}.",
        file=for_messages(),
        flush=True,
    )


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def _as_current(request: StopRequest) -> Iterator[None]:
    global _current
    _current = request
    try:
        yield
    finally:
        _current = None


@contextlib.contextmanager
def _handlers(handler: Callable[..., None]) -> Iterator[Callable[[], None]]:
    """Sets a handler for each signal; yields what puts the earlier ones back."""
    # None stands for a handler that was not set from Python; it cannot be put back.
    earlier = {number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS}

    def restore() -> None:
        for number, previous in earlier.items():
            signal.signal(number, previous)

    for number in SIGNALS:
        signal.signal(number, handler)
    try:
        yield restore
    finally:
        restore()
