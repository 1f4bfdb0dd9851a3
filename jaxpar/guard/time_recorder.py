"""The time of a session, recorded while it runs."""

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxpar.guard import phases, time_account
from jaxpar.guard.time_account import REPEATED, STAMP, Account, Leg, SessionTime

EVERY_SECONDS = 5.0
"""How often the time is written: to a row of metrics, and to time.json."""


class TimeRecorder:
    """Records the time of the session that runs, and adds it to the run's account.

    It starts with the session: what the process did before is not counted.
    """

    def __init__(
        self,
        record: phases.Phases = phases.PROCESS,
        *,
        now: Callable[[], float] = time.time,
    ):
        """record: of this process's phases. now: the wall clock, in seconds."""
        self._record, self._now = record, now
        self._before = time_account.spent_before() if record is phases.PROCESS else {}
        self._started = now() - sum(self._seconds().values())
        self.earlier: Sequence[SessionTime] = ()
        """The times of earlier sessions of the run."""
        self._to_first_step: float | None = None
        self._legs: list[Leg] = []
        self._leg_before: time_account.Seconds = {}
        self._lock = threading.Lock()
        self._row_at = -EVERY_SECONDS

    def begin_at(self, step: int) -> None:
        """The steps from this one on are done next, for the first time or again."""
        self.end_leg()
        with self._lock:
            self._leg_before = self._seconds()
            self._legs.append(Leg(step, step, {}, {}))

    def end_leg(self) -> None:
        """Ends the leg: counts what was spent since its last row as needed for it.

        That is a save, for one.
        """
        with self._lock:
            if self._legs:
                spent = self._spent_in_leg()
                self._legs[-1] = dataclasses.replace(self._legs[-1], spent=spent)

    def timed(self, train_step: Callable) -> Callable:
        """The training step, whose first call is waited for to know when it ended."""

        def step(state: Any, batch: Any) -> tuple[Any, Any]:
            state, metrics = train_step(state, batch)
            if self._to_first_step is None:
                jax.block_until_ready(metrics)
                self._to_first_step = sum(self._seconds().values())
            return state, metrics

        return step

    def add_to(self, row: dict[str, Any], *, last: bool = False) -> dict[str, Any]:
        """The row of a step that is written now; every few seconds with the account.

        last: whether it is the last row of the run, which has the account anyway.
        """
        with self._lock:
            spent = self._spent_in_leg()
            self._legs[-1] = dataclasses.replace(
                self._legs[-1], step=row["step"], spent=spent
            )
        elapsed = sum(self._seconds().values())
        if not last and elapsed - self._row_at < EVERY_SECONDS:
            return row
        self._row_at = elapsed
        return {**row, **self.account().as_row()}

    def account(self) -> Account:
        """The account of all sessions up to now."""
        return time_account.account([*self.earlier, self.session()])

    def session(self) -> SessionTime:
        """What is known of this session now."""
        with self._lock:
            legs = [*self._legs]
            if legs:
                spent, last = self._spent_in_leg(), legs[-1]
                after = {p: s - last.spent.get(p, 0.0) for p, s in spent.items()}
                legs[-1] = dataclasses.replace(last, after=after)
        return SessionTime(
            _stamp(self._started),
            _stamp(self._now()),
            self._seconds(),
            self._to_first_step,
            tuple(legs),
        )

    def _seconds(self) -> dict[str, float]:
        """Seconds of this session, by phase."""
        spent = self._record.seconds()
        return {p: s - self._before.get(p, 0.0) for p, s in spent.items()}

    def _spent_in_leg(self) -> dict[str, float]:
        spent = self._seconds()
        return {p: spent[p] - self._leg_before.get(p, 0.0) for p in REPEATED}


def _stamp(seconds: float) -> str:
    return time.strftime(STAMP, time.localtime(seconds))
