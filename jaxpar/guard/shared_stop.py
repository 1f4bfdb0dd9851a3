"""How several processes, one of which got a signal, stop after the same step.

Each process counts the calls of `reached`, which all make at the same points. A
thread in each learns of a request, holds its process at its next call, and tells
process 0 the count. The largest count of all is one that every process still reaches:
each goes on to the call after it, and stops there. Steps in flight need no process to
wait for another meanwhile, so none blocks a collective of another.
"""

import threading
import time
from typing import Any

from jaxpar.guard.stopping import StopRequest, Unsaved, status_of
from jaxpar.partition import cluster
from jaxpar.tables import for_messages

POLL_SECONDS = 0.5
NEVER = -1
GONE = "gone"
AT_THE_END = "at the end"


class SharedStop:
    """A stop request that is shared by all processes of a run.

    To be made and started the same number of times by every process.
    """

    def __init__(self, request: StopRequest):
        self._request = request
        self._key = cluster.shared_key("stop")
        self._counted, self._last = 0, None
        self._turn = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="jaxpar-shared-stop", daemon=True
        )

    def start(self) -> None:
        """Takes part from now on."""
        self._request.agreement = self.reached
        self._thread.start()

    def close(self) -> None:
        """Takes part no more."""
        self._closed.set()
        self._request.agreement = None
        self._thread.join()

    def reached(self) -> bool:
        """Counts this call; whether it is the one after which all stop."""
        with self._turn:
            self._counted += 1
            return self._last is not None and 0 <= self._last <= self._counted

    def _run(self) -> None:
        try:
            while not self._closed.wait(POLL_SECONDS):
                if self._is_asked():
                    self._agree()
                    return
        except Exception as error:  # The coordinator is gone: JAX ends the process.
            if not self._closed.is_set():
                print(
                    f"jaxpar: the processes cannot agree: {error}", file=for_messages()
                )
                if self._request.asked():
                    self._end()

    def _is_asked(self) -> bool:
        request, name = self._request, cluster.look(f"{self._key}/signal")
        if name is None and request.asked():
            name = request.signal
            cluster.post(f"{self._key}/signal", name)
        if name is not None:
            request.ask(name)
        return name is not None

    def _agree(self) -> None:
        with self._turn:
            cluster.post(f"{self._key}/at/{cluster.index()}", self._where())
            if cluster.is_first():
                cluster.post(f"{self._key}/last", self._decide())
            last = self._await(f"{self._key}/last")
            self._last = NEVER if last == GONE else last
        if self._request.unsaved is Unsaved.END:
            return
        if last == GONE or not self._closed.wait(self._request.grace):
            self._end()

    def _where(self) -> int | str:
        """How far this process is: its count, unless it takes no part in steps."""
        unsaved = self._request.unsaved
        if unsaved is Unsaved.STEPS:
            return self._counted
        return AT_THE_END if unsaved is Unsaved.END else GONE

    def _decide(self) -> int | str:
        """The count at which all stop; never, if one is at the end of the run."""
        at = [self._await(f"{self._key}/at/{i}") for i in range(cluster.count())]
        if AT_THE_END in at:
            return NEVER
        return GONE if GONE in at else max(at) + 1

    def _await(self, key: str) -> Any:
        deadline = time.monotonic() + self._request.grace
        while (value := cluster.look(key)) is None:
            if time.monotonic() > deadline or self._closed.wait(POLL_SECONDS / 5):
                return GONE
        return value

    def _end(self) -> None:
        """Ends this process; process 0, which serves the others, ends last."""
        if self._closed.is_set():
            return
        print(
            f"jaxpar: {self._request.prefix}not all processes can stop after the "
            "same step, so nothing more is saved; what was saved before is intact.",
            file=for_messages(),
            flush=True,
        )
        if cluster.is_first():
            time.sleep(4 * POLL_SECONDS)
        self._request.leave(status_of(self._request.signal))
