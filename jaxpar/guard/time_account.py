"""The account of a run's time: what its sessions spent it on, and what was lost.

Seconds are of a monotonic clock, so that no jump of the wall clock changes them. Time
between two sessions, when nothing ran, is stated, but is no part of a run's wall time.
"""

import contextlib
import dataclasses
import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxpar.guard import phases
from jaxpar.guard.phases import Phase

PARTS: dict[str, str] = {
    "compute": "compute",
    "compile": "compile",
    "data": "data",
    "save": "checkpoint",
    "restore": "checkpoint",
    "evaluate": "evaluation",
    "start": "start",
    "prepare": "start",
}
"""The part of the account to which each phase belongs; "lost" is added to them."""
REPEATED: tuple[Phase, ...] = ("compute", "data", "save", "evaluate")
"""What is done again for the steps of a session that a later one repeats."""
WORDS = {
    "compute": "computing",
    "compile": "compiling",
    "data": "awaiting data",
    "checkpoint": "saving and restoring",
    "evaluation": "evaluating",
    "start": "starting",
    "lost": "lost",
}
MALFORMED = (KeyError, TypeError, ValueError, AttributeError)
"""What `session_from_json` raises of a value that is no session."""
STAMP = "%Y-%m-%dT%H:%M:%S%z"
"""How moments of the wall clock are written."""

Seconds = Mapping[str, float]
"""Seconds by phase."""


@dataclasses.dataclass(frozen=True)
class Leg:
    """Steps that were done one after another; a session has several if it went back."""

    first: int
    """The step that it began at."""
    step: int
    """The last step whose metrics were written."""
    spent: Seconds
    """Seconds on REPEATED phases from the leg's beginning until that step, or until
    its end where that was in order."""
    after: Seconds
    """Seconds on them later: of steps, or of a save, that were never finished."""


@dataclasses.dataclass(frozen=True)
class SessionTime:
    """What is recorded of a session, from its start to its end or its last sign."""

    started: str
    """When it started, by the wall clock."""
    ended: str
    """When it ended, or was last seen."""
    seconds: Seconds
    """Seconds on each phase."""
    to_first_step: float | None
    """Seconds from its start to its first finished step; None where there was none."""
    legs: tuple[Leg, ...] = ()


@dataclasses.dataclass(frozen=True)
class Account:
    """The wall time of all sessions of a run."""

    sessions: int
    """How many sessions it is of."""
    seconds: Mapping[str, float]
    """Part of the account (see PARTS, and "lost") to its seconds; their sum is all."""
    lost_steps: int
    """Steps that were done beyond the checkpoint from which the run went on."""
    between: float
    """Seconds between sessions, by the wall clock; no part of `seconds`."""
    to_first_step: tuple[float | None, ...]
    """Of each session, the seconds from its start to its first finished step."""

    @property
    def wall(self) -> float:
        """Seconds of all sessions together."""
        return sum(self.seconds.values())

    @property
    def goodput(self) -> float:
        """The fraction of the wall time in which steps were computed that count."""
        return self.seconds["compute"] / self.wall if self.wall else 0.0

    def as_row(self) -> dict[str, float]:
        """The account as fields of a row of metrics."""
        parts = {f"time_{part}": seconds for part, seconds in self.seconds.items()}
        return {"goodput": self.goodput, **parts, "lost_steps": self.lost_steps}

    def __str__(self) -> str:
        """The account as one line for the terminal."""
        wall = max(self.wall, 1e-9)
        shares = {part: seconds / wall for part, seconds in self.seconds.items()}
        named = ", ".join(
            f"{100 * share:.0f} % {WORDS.get(part, part)}"
            for part, share in sorted(shares.items(), key=lambda item: -item[1])
            if part != "lost" and share >= 0.005
        )
        plural = "s" if self.sessions != 1 else ""
        line = f"Time: {clock(self.wall)} in {self.sessions} session{plural}; "
        line += named or "nothing recorded"
        if self.lost_steps or self.seconds["lost"] >= 1:
            s = "s" if self.lost_steps != 1 else ""
            line += f"; {self.lost_steps} step{s} ({clock(self.seconds['lost'])}) lost "
            line += "to stops or rewinds"
        if self.between >= 1:
            line += f"; {clock(self.between)} between sessions"
        return f"{line}."


def account(sessions: Sequence[SessionTime]) -> Account:
    """The account of a run's sessions, in their order.

    Of a leg that a later one goes back behind, the steps beyond that point are lost,
    with their share of its seconds; so is what it spent on steps it did not finish.
    """
    seconds = dict.fromkeys(dict.fromkeys(PARTS.values()), 0.0)
    for session in sessions:
        for phase, spent in session.seconds.items():
            part = PARTS.get(phase, phase)  # A newer version may have more phases.
            seconds[part] = seconds.get(part, 0.0) + spent
    seconds["lost"], lost_steps, resumed_at = 0.0, 0, math.inf
    for i, leg in enumerate(reversed([leg for s in sessions for leg in s.legs])):
        if i:  # What the last leg did is not lost before another goes on.
            steps, lost = _lost(leg, resumed_at)
            lost_steps += steps
            for phase, spent in lost.items():
                seconds[PARTS.get(phase, phase)] -= spent
                seconds["lost"] += spent
        resumed_at = min(resumed_at, leg.first)
    return Account(
        len(sessions),
        seconds,
        lost_steps,
        _between(sessions),
        tuple(session.to_first_step for session in sessions),
    )


def extended(session: SessionTime, step: int, seconds: float) -> SessionTime:
    """A killed session with steps that it did after its time was last recorded.

    step: the last of them. seconds: what they took, as their rows of metrics say.
    """
    *earlier, last = session.legs
    spent, after = dict(last.spent), dict(last.after)
    recorded = after.get("compute", 0.0) + after.get("data", 0.0)
    share = min(1.0, seconds / recorded) if recorded else 0.0
    for phase in ("compute", "data"):
        moved = share * after.get(phase, 0.0)
        spent[phase] = spent.get(phase, 0.0) + moved
        after[phase] = after.get(phase, 0.0) - moved
    missing = max(0.0, seconds - recorded)
    spent["compute"] += missing
    whole = {**session.seconds}
    whole["compute"] = whole.get("compute", 0.0) + missing
    legs = (*earlier, Leg(last.first, step, spent, after))
    return dataclasses.replace(session, seconds=whole, legs=legs)


def session_from_json(value: Any) -> SessionTime:
    """The inverse of `dataclasses.asdict`.

    Raises:
      One of MALFORMED: it is none.
    """
    first, stamps = value["to_first_step"], (value["started"], value["ended"])
    for stamp in stamps:
        datetime.datetime.strptime(stamp, STAMP)
    return SessionTime(
        *stamps,
        _seconds(value["seconds"]),
        None if first is None else float(first),
        tuple(map(_leg_from_json, value["legs"])),
    )


def clock(seconds: float) -> str:
    """Seconds as hours, minutes and seconds.

    >>> clock(5025), clock(130)
    ('1:23:45', '2:10')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_command: list[Seconds] = []


@contextlib.contextmanager
def within_command() -> Iterator[None]:
    """A command of the terminal; its first session counts from here on."""
    _command[:] = [_seconds(phases.PROCESS.seconds())]
    try:
        yield
    finally:
        _command.clear()


def spent_before() -> Seconds:
    """The seconds of this process that are not of the session which starts now."""
    return _command.pop() if _command else _seconds(phases.PROCESS.seconds())


def _lost(leg: Leg, resumed_at: float) -> tuple[int, dict[str, float]]:
    """Of a leg, after which another went on at a step: lost steps, seconds by phase."""
    done = leg.step - leg.first
    kept = max(0, min(leg.step, resumed_at) - leg.first)
    share = 1 - kept / done if done else 1.0
    lost = {phase: spent * share for phase, spent in leg.spent.items()}
    for phase, spent in leg.after.items():
        lost[phase] = lost.get(phase, 0.0) + spent
    return int(done - kept), lost


def _between(sessions: Sequence[SessionTime]) -> float:
    """Seconds between sessions; a wall clock that was set back counts as none."""
    total = 0.0
    for earlier, later in zip(sessions, sessions[1:], strict=False):
        ended, started = (
            datetime.datetime.strptime(stamp, STAMP)
            for stamp in (earlier.ended, later.started)
        )
        total += max(0.0, (started - ended).total_seconds())
    return total


def _leg_from_json(value: Any) -> Leg:
    spent, after = _seconds(value["spent"]), _seconds(value["after"])
    return Leg(int(value["first"]), int(value["step"]), spent, after)


def _seconds(value: Any) -> dict[str, float]:
    return {str(phase): float(spent) for phase, spent in value.items()}
