"""How long a phase may take is given in words, or learned from the run's steps.

pytest tests/guard/test_limits.py
"""

import pytest

from jaxpar.guard import limits
from jaxpar.guard.limits import LEAST_SECONDS, Limits, Pace


def test_the_limit_is_learned_from_fetched_steps():
    pace, auto = Pace(), Limits()

    def steps(n, seconds):
        nonlocal at
        for _ in range(n):
            pace.begin()
        at += n * seconds
        return pace.limit(auto)

    at = 0.0
    # Nothing is known: a first fetch of many steps may take as long as it does.
    assert steps(100, 60) > 100 * 60
    pace.finish(at)
    # The 100 steps of the next fetch take as long, and may take some times longer.
    assert steps(1, 60) == steps(99, 60) == limits.IN_FLIGHT_FACTOR * 100 * 60
    pace.finish(at)
    for _ in range(limits.RECENT):
        steps(1, 0.1)
        pace.finish(at)
    assert pace.limit(auto) == LEAST_SECONDS
    # A longer fetch than any before it, as before an evaluation: 1 step, then 50.
    assert steps(1, 30) == 20 * 0.1 or pace.limit(auto) == LEAST_SECONDS
    pace.finish(at)
    assert steps(50, 30) == limits.IN_FLIGHT_FACTOR * 50 * 30
    assert pace.limit(Limits(compute=7.0)) == 7.0


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "nan", "inf", "on", "5,steps=3", "5,save", "5,save=", "5,6"]
)
def test_what_is_no_limit_is_refused(text):
    with pytest.raises(ValueError, match="must be auto, off or seconds above 0"):
        limits.parse(text)


def test_limits_are_given_in_words():
    assert limits.parse("save=90") == Limits(save=90)
    assert limits.parse("600,data=off") == Limits(compute=600, data=float("inf"))
    assert limits.parse("off") is None and limits.parse("auto") == Limits()
