"""Says what is being read where that takes long, such as a source that hangs."""

import contextlib
import threading
import time
from collections.abc import Iterator

from jaxpar.tables import for_messages

SAY_SECONDS, LOOK_SECONDS = 30.0, 1.0
"""After which time it is said, and then twice as long; and between two looks."""


class SlowReads:
    """What a thread reads now, looked at by another one, which ends when none reads."""

    def __init__(self):
        self._lock, self._watched = threading.Lock(), False
        self._what, self._since, self._say_at = "", 0.0, 0.0

    @contextlib.contextmanager
    def said(self, what: str) -> Iterator[None]:
        """A block that reads something; what: for the line that says so."""
        self._what, self._since, self._say_at = what, time.monotonic(), SAY_SECONDS
        if not self._watched:
            with self._lock:
                self._watched, begin = True, not self._watched
            if begin:
                threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield
        finally:
            self._what = ""

    def _watch(self) -> None:
        idle = 0
        while idle < 60:
            time.sleep(LOOK_SECONDS)
            what, seconds = self._what, time.monotonic() - self._since
            idle = 0 if what else idle + 1
            if what and seconds >= self._say_at:
                self._say_at = 2 * seconds
                line = f"{what} has been read for {seconds:.0f} s."
                print(line, file=for_messages(), flush=True)
        self._watched = False


PROCESS = SlowReads()
"""Of the thread that prepares data."""
said = PROCESS.said
