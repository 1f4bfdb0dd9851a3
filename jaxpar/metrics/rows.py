"""Rows of metrics, handed to every sink; what happens when one fails."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from jaxpar.errors import JaxparError, one_line
from jaxpar.metrics.sinks import JsonlSink, Row
from jaxpar.tables import for_messages


class Sink(Protocol):
    """Where rows go."""

    def write(self, row: Row) -> None:
        """Writes a row."""
        ...

    def close(self) -> None:
        """Writes no more."""
        ...


class OptionalSink:
    """A sink that a run can do without: once it has failed, it is off.

    what: its name in the one warning that says so.
    """

    def __init__(self, sink: Sink, what: str):
        self._sink, self._what = sink, what
        self._is_off = False

    def write(self, row: Row) -> None:
        """Writes a row, if that can be done."""
        self._attempt(lambda: self._sink.write(row))

    def close(self) -> None:
        """Closes the sink, if that can be done."""
        self._attempt(self._sink.close)

    def _attempt(self, action: Callable[[], None]) -> None:
        if self._is_off:
            return
        try:
            action()
        except Exception as error:  # Whatever it is, no step is lost for it.
            self._is_off = True
            with contextlib.suppress(Exception):  # To free what it holds.
                self._sink.close()
            with contextlib.suppress(OSError, ValueError):  # stderr may be gone, too.
                print(
                    f"{self._what} is off from now on ({one_line(error)}); the run "
                    "goes on without it.",
                    file=for_messages(),
                )


class Rows:
    """Hands each row to metrics.jsonl, which must not fail, and to sinks that may.

    Once a row cannot be written, later ones are not, so that the file has no gap. The
    run is asked to stop then, which saves its state; `require_written` is the error
    that it ends with. essential: None in processes that write nothing. ask_to_stop:
    called once, at the first row that is lost.
    """

    def __init__(
        self,
        essential: JsonlSink | None,
        others: Sequence[OptionalSink],
        *,
        ask_to_stop: Callable[[], None],
    ):
        self._essential, self._others = essential, others
        self._ask_to_stop = ask_to_stop
        self._error: JaxparError | None = None

    def write(self, row: Row) -> None:
        """Hands a row to every sink."""
        if self._essential is not None and self._error is None:
            try:
                self._essential.write(row)
            except OSError as error:
                self._error = _lost(self._essential.path, row, error)
                self._ask_to_stop()
        for sink in self._others:
            sink.write(row)

    def require_written(self) -> None:
        """Raises an error if a row was lost; to be called when the state is saved.

        Raises:
          JaxparError: says which row was the first, and why.
        """
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Closes every sink."""
        for sink in self._others:
            sink.close()
        if self._essential is not None:
            with contextlib.suppress(OSError):  # Each row is written, or known as lost.
                self._essential.close()


def _lost(path: Path, row: Row, error: OSError) -> JaxparError:
    """The error of a row that could not be written."""
    reason = error.strerror or one_line(error)
    return JaxparError(
        f"{path} cannot be written ({reason}): the rows from step {row['step']} on are "
        "missing in it. The run has stopped, and is saved; free some space, or make "
        "the file writable, and the same command goes on."
    )
