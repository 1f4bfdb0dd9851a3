"""What this process is doing now, and the time that it has spent on each phase.

The main thread says what it does; watchers (signals, the watchdog, the accounting of
time) read it from other threads. The record belongs to the whole process, as a logger
does, since phases begin in many modules.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Literal, get_args

Phase = Literal[
    "start", "prepare", "restore", "compile", "compute", "data", "evaluate", "save"
]
"""start: imports, devices, initial weights. compile: a first step, which compiles.
compute: all other steps. data: a batch is awaited."""
PHASES: tuple[Phase, ...] = get_args(Phase)


class Phases:
    """The record of one process; `clock` returns seconds and never goes back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock, self._lock = clock, threading.Lock()
        self._stack: list[Phase] = ["start"]
        self._spent = dict.fromkeys(PHASES, 0.0)
        self._since = clock()
        self.follower: Callable[[Phase, bool], None] = lambda *changed: None
        """Called with the present phase after each change of phase, with False, and
        after each progress, with True."""

    @contextlib.contextmanager
    def doing(self, phase: Phase) -> Iterator[None]:
        """A block that belongs to a phase; its time counts for no outer phase."""
        self._switch(lambda: self._stack.append(phase))
        try:
            yield
        finally:
            self._switch(self._stack.pop)

    def made_progress(self) -> None:
        """Something was finished in this phase, such as a batch.

        In `compute`: every step begun so far has finished on the device.
        """
        self.follower(self._stack[-1], True)

    def present(self) -> Phase:
        """The phase that the process is in."""
        return self._stack[-1]

    def seconds(self) -> dict[Phase, float]:
        """The seconds spent on each phase since the process began."""
        with self._lock:
            spent = dict(self._spent)
            spent[self._stack[-1]] += self._clock() - self._since
        return spent

    def _switch(self, change: Callable[[], object]) -> None:
        with self._lock:
            now = self._clock()
            self._spent[self._stack[-1]] += now - self._since
            change()
            self._since = now
        self.follower(self._stack[-1], False)


PROCESS = Phases()
"""The record of this process."""
doing, made_progress = PROCESS.doing, PROCESS.made_progress
