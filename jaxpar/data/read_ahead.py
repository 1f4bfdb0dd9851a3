"""Reading ahead: what is asked for in order has been read before, in threads.

One thread reads, and more where it is awaited while it mostly waits itself, for a disk
or a network. Threads that compute would take turns, and help nothing.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from jaxpar.partition import cluster
from jaxpar.tables import for_messages

READ_AHEAD = 2
"""Batches that are read before they are asked for, beside one for each thread."""
MOST_READERS = 8
COMPUTES_LESS_THAN = 0.5
"""A thread that computes for less than this part of its time mostly waits."""
PATIENCE_SECONDS = 0.5
"""Another thread joins those that wait after batches have been awaited for so long."""
WAIT_SECONDS = 0.2
"""Between two questions whether to give up the wait for a batch."""
SAY_SECONDS = 10.0
"""How long a batch is awaited until a line says for what; then twice as long."""
NAME = "jaxpar-read-ahead"
T = TypeVar("T")


class Place:
    """Which part of a batch a thread reads now, and since when."""

    def __init__(self):
        self.begin("its beginning")

    def begin(self, *what: object) -> None:
        """Notes what is read from now on; shown in words, one after another."""
        self.what, self.since = what, time.monotonic()

    def __str__(self) -> str:
        seconds = time.monotonic() - self.since
        return f"{' '.join(map(str, self.what))} has been read for {seconds:.0f} s"


def read_ahead(
    read: Callable[[int, Place], T],
    numbers: Iterable[int],
    give_up: Callable[[], bool] | None = None,
) -> Iterator[T]:
    """read(i, place) for each number, in order; its threads end with this iterator.

    An error of `read` is raised in its batch's turn. give_up: where it turns true while
    a batch is awaited, there are no more.
    """
    readers = _Readers(read, numbers)
    try:
        while (found := readers.take(give_up)) is not None:
            (result,) = found
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        readers.stop()


class _Readers(Generic[T]):
    """Threads that read batches, each of which takes the next one that none has."""

    def __init__(self, read: Callable[[int, Place], T], numbers: Iterable[int]):
        self._read, self._numbers = read, enumerate(numbers)
        self._changed = threading.Condition()
        self._ready: dict[int, tuple[T | BaseException]] = {}
        self._begun: dict[int, tuple[int, Place]] = {}
        self._taken, self._n_begun, self._n_threads = 0, 0, 0
        self._ended = self._stopped = False
        self._add_thread()

    def take(
        self, give_up: Callable[[], bool] | None
    ) -> tuple[T | BaseException] | None:
        """The next result, in a tuple; None after the last, or where it is given up."""
        began, say_at = time.monotonic(), SAY_SECONDS
        with self._changed:
            while (found := self._ready.pop(self._taken, None)) is None:
                if self._ended and self._taken == self._n_begun:
                    return None
                self._changed.wait(WAIT_SECONDS)
                if give_up and self._taken not in self._ready and give_up():
                    return None
                if (seconds := time.monotonic() - began) >= say_at:
                    self._say(seconds)
                    say_at *= 2
            self._taken += 1
            self._awaited += time.monotonic() - began
            if self._awaited > PATIENCE_SECONDS:
                self._add_thread_if_it_helps()
            self._changed.notify_all()
        return found

    def stop(self) -> None:
        """Ends the threads, each after what it reads now."""
        with self._changed:
            self._stopped = True
            self._ready.clear()
            self._changed.notify_all()

    def _say(self, seconds: float) -> None:
        number, place = self._begun.get(self._taken, (None, None))
        of = f"Process {cluster.index()}: batch" if cluster.count() > 1 else "Batch"
        what = "" if number is None else f" {number}"
        why = f": {place}" if place else ""
        line = f"{of}{what} has been awaited for {seconds:.0f} s{why}."
        print(line, file=for_messages(), flush=True)

    def _add_thread_if_it_helps(self) -> None:
        mostly_waits = self._computed < COMPUTES_LESS_THAN * self._spent
        if mostly_waits and self._n_threads < MOST_READERS and not self._ended:
            self._add_thread()

    def _add_thread(self) -> None:
        self._n_threads += 1
        # Seconds since then: that results were awaited, were read, and were computed.
        self._awaited = self._spent = self._computed = 0.0
        threading.Thread(target=self._run, name=NAME, daemon=True).start()

    def _run(self) -> None:
        while (begun := self._begin()) is not None:
            i, number, place = begun
            began, computed = time.monotonic(), time.thread_time()
            try:
                result = self._read(number, place)
            except BaseException as error:  # It is raised where the batch is awaited.
                result = error
            computed, spent = time.thread_time() - computed, time.monotonic() - began
            with self._changed:
                self._computed += computed
                self._spent += spent
                del self._begun[i]
                if not self._stopped:
                    self._ready[i] = (result,)
                self._changed.notify_all()

    def _begin(self) -> tuple[int, int, Place] | None:
        """The next batch to read, once there is room for it; None after the last."""
        with self._changed:
            while not self._stopped and not self._ended:
                if self._n_begun - self._taken < READ_AHEAD + self._n_threads:
                    if (found := next(self._numbers, None)) is not None:
                        (i, number), place = found, Place()
                        self._n_begun, self._begun[i] = i + 1, (number, place)
                        return i, number, place
                    self._ended = True
                    self._changed.notify_all()
                else:
                    self._changed.wait()
        return None
