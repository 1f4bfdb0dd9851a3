"""How long each phase may take without progress before it counts as hanging."""

import collections
import dataclasses
import math
from typing import get_args

from jaxpar.errors import UserError
from jaxpar.guard.phases import Phase

MINUTE, HOUR = 60.0, 3600.0
LEAST_SECONDS = 5 * MINUTE
"""No learned limit is shorter: a file system may fail over, a machine be busy."""
ONE_STEP_FACTOR, IN_FLIGHT_FACTOR = 20, 5
"""How many times slower than lately one step, and all steps in flight, may be."""
RECENT = 10
"""How many of the last fetches of metrics are learned from."""
UNKNOWN_STEP = 1 * MINUTE
"""What a step may take that no fetch has timed, beside `compile`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds that each phase may take without progress; infinity: as long as it does.

    They are generous, since what is ended by mistake is ended again at each restart.
    """

    start: float = 30 * MINUTE
    """Imports from a slow file system, devices, initial weights, other processes."""
    prepare: float = math.inf
    """A corpus may take days, and a step of its preparation hours."""
    restore: float = 2 * HOUR
    """1 TB at 150 MB/s, with its digests compared."""
    compile: float = 1 * HOUR
    """The largest programs on the slowest hosts take half of it."""
    compute: float | None = None
    """Seconds; None: learned from the run's own steps (`Pace`)."""
    data: float = 30 * MINUTE
    """A batch read from a network that fails over, or made by slow code."""
    evaluate: float = 1 * HOUR
    """Made progress counts each batch, yet the device may finish them together."""
    save: float = 1 * HOUR
    """The copy to the host, and the rest of the save before it."""


def parse(text: str) -> Limits | None:
    """The limits of --watchdog; None where it is off.

    >>> parse("off"), parse("auto") == Limits()
    (None, True)
    >>> parse("90") == Limits(compute=90.0, data=90.0)
    True
    >>> parse("auto,compile=7200,save=off").save
    inf

    Raises:
      UserError: it is none of these.
    """
    first, *others = [word.strip() for word in text.split(",")]
    if text.strip() == "off":
        return None
    given: dict[str, float] = {}
    if "=" in first:
        others = [first, *others]
    elif first != "auto":
        given["compute"] = given["data"] = _seconds(first, text)
    for word in others:
        phase, _, seconds = word.partition("=")
        if phase not in get_args(Phase):
            raise _refused(text)
        given[phase] = math.inf if seconds == "off" else _seconds(seconds, text)
    return Limits(**given)


class Pace:
    """How long training steps take, and from that, how long they may take.

    A step that was begun runs on the device while the host goes on; only a fetch of
    metrics shows that it, and all before it, have finished.
    """

    def __init__(self):
        self._begun, self._at = 0, 0.0
        self._recent: collections.deque[tuple[float, int]] = collections.deque(
            maxlen=RECENT
        )

    def begin(self) -> None:
        """A step is begun."""
        self._begun += 1

    def finish(self, at: float, *, learn: bool = True) -> None:
        """All steps begun so far have finished.

        at: seconds so far in which the device may have computed steps. learn: whether
        the time since the last call is that of steps, and of nothing else.
        """
        if learn and self._begun:
            self._recent.append(((at - self._at) / self._begun, self._begun))
        self._begun, self._at = 0, at

    def limit(self, limits: Limits) -> float:
        """The seconds that `compute` may take from now on without progress."""
        if limits.compute is not None:
            return limits.compute
        if not self._recent:
            return limits.compile + UNKNOWN_STEP * self._begun
        one = max(seconds for seconds, _ in self._recent)
        in_flight = max(self._begun, *(n for _, n in self._recent))
        return max(
            LEAST_SECONDS, ONE_STEP_FACTOR * one, IN_FLIGHT_FACTOR * one * in_flight
        )


def _seconds(word: str, text: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        raise _refused(text) from None
    if not 0 < seconds < math.inf:
        raise _refused(text)
    return seconds


def _refused(text: str) -> UserError:
    return UserError(
        f"--watchdog {text}: it must be auto, off or seconds above 0, and may go on "
        f"with limits of phases, as in auto,compile=7200,save=off; phases are "
        f"{', '.join(get_args(Phase))}."
    )
