"""Says for which other processes this one waits, where it waits for long."""

import contextlib
import socket
import threading
from collections.abc import Callable, Collection, Iterator

from jaxpar.tables import for_messages

FIRST_SECONDS, AGAIN_SECONDS = 5, 60
"""After which time a process says for whom it waits, and after which again."""
MOST_NAMED = 8
GREETING = b"jaxpar process "


@contextlib.contextmanager
def said(arrive: Callable[[], None], whom: Callable[[], str]) -> Iterator[None]:
    """A block that waits for other processes: after some seconds a line says for whom.

    Both are called in a thread. arrive: makes known to the others that this process
    waits; called every second. whom: what to say; "" for nothing.
    """
    done = threading.Event()

    def watch() -> None:
        due, seconds = FIRST_SECONDS, 0
        with contextlib.suppress(Exception):  # The wait itself says what is wrong.
            while not done.wait(1):
                arrive()
                seconds += 1
                if seconds >= due and (text := whom()):
                    print(text, file=for_messages(), flush=True)
                    due = seconds + AGAIN_SECONDS

    threading.Thread(target=watch, daemon=True, name="waiting").start()
    try:
        yield
    finally:
        done.set()


def missing(n: int, here: Collection[int]) -> str:
    """The numbers of those of n processes that are not here.

    >>> missing(4, [0, 2]), missing(2, [0, 1]), missing(1_000, [0])
    ('1, 3', '', '1, 2, 3, 4, 5, 6, 7, 8 and 991 more')
    """
    gone = [str(i) for i in range(n) if i not in here]
    more = len(gone) - MOST_NAMED
    return ", ".join(gone[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


class Greetings:
    """Which processes have come, before JAX has connected them.

    Each sends a datagram to process 0 every second. Where a network drops these, it is
    only said how many processes there must be.
    """

    def __init__(self, place: Callable[[], tuple[str | None, int, int]]):
        """place: process 0's HOST:PORT, the number of processes, and which this is."""
        self._place, self._heard = place, {0}
        self._socket: socket.socket | None = None

    def exchange(self) -> None:
        """Sends a greeting, or receives those that have come."""
        address, _, i = self._place()
        host, _, port = (address or "").rpartition(":")
        with contextlib.suppress(OSError):
            if i == 0 and host:
                self._receive(int(port))
            elif host:
                to = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_DGRAM)
                with socket.socket(to[0][0], socket.SOCK_DGRAM) as sender:
                    sender.sendto(GREETING + str(i).encode(), to[0][4])

    def whom(self) -> str:
        """For whom this process waits, in words; "" where there are no others."""
        address, n, i = self._place()
        if len(self._heard) > 1:
            gone = missing(n, self._heard)
            waits = f"Process 0 of {n} waits for process {gone}."
            return waits if gone else f"All {n} processes have come; JAX connects them."
        whom = "process 0 and all others" if i else f"the {n - 1} others"
        return f"Process {i} of {n} waits for {whom} at {address}." if n > 1 else ""

    def _receive(self, port: int) -> None:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            self._socket.setblocking(False)
            self._socket.bind(("::", port))
        while True:  # Until nothing is left to read, which is a BlockingIOError.
            number = self._socket.recv(64).removeprefix(GREETING)
            if number.isdigit():
                self._heard.add(int(number))
