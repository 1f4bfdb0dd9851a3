"""How far a long work is: a bar in a terminal, else a line a minute."""

import sys
import time
from typing import Any, Self

from jaxpar.tables import for_messages

LINE_SECONDS = 60
BAR = "{desc}: {percentage:5.1f} %|{bar}| {postfix} [{elapsed}<{remaining}]"


class Progress:
    """The progress through some items, of which a part may be done; a context."""

    def __init__(self, what: str, total: int, *, done: float, is_shown: bool):
        """done: items that were done before; is_shown: whether to say anything."""
        self._what, self._total, self._first = what, total, done
        self._is_shown, self._n_bytes, self._bar = is_shown, 0, None
        self._start = self._said = time.monotonic()
        if is_shown and (sys.stderr.isatty() or for_messages() is sys.stdout):
            from tqdm.auto import tqdm

            self._bar: Any = tqdm(total=total, initial=done, desc=what, bar_format=BAR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, done: float, n_bytes: int) -> None:
        """done: items that are done by now; n_bytes: those since the last call."""
        self._n_bytes += n_bytes
        if not self._is_shown:
            return
        now = time.monotonic()
        seconds = max(now - self._start, 1e-9)
        speed = f"{self._n_bytes / seconds / 1e6:.1f} MB/s"
        if self._bar is not None:
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(done - self._bar.n)
        elif now - self._said >= LINE_SECONDS:
            self._said = now
            share = done / max(self._total, 1)
            new = max(done - self._first, 1e-9)
            left = (self._total - done) / new * seconds / 60
            line = f"{self._what}: {share:.1%}, {speed}, {left:,.0f} minutes left"
            print(line, file=for_messages(), flush=True)
