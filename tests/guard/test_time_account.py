"""All wall time is accounted for, and what was done in vain is called lost.

pytest tests/guard/test_time_account.py
"""

import dataclasses
import json

import pytest

from jaxpar.guard import time_account
from jaxpar.guard.phases import PHASES
from jaxpar.guard.time_account import (
    PARTS,
    Leg,
    SessionTime,
    account,
    session_from_json,
)


def session(*legs, to_first=5.0, hour=0, minutes=10, **seconds):
    return SessionTime(
        f"2026-01-01T{hour:02}:00:00+0000",
        f"2026-01-01T{hour:02}:{minutes:02}:00+0000",
        seconds,
        to_first,
        legs,
    )


def leg(first, step, *, compute, **after):
    return Leg(first, step, {"compute": compute, "save": compute / 10}, after)


def test_every_phase_has_a_part():
    assert PARTS.keys() == set(PHASES)


def test_parts_add_up_to_the_wall_time():
    one = session(
        leg(0, 50, compute=100.0), compute=100.0, save=10.0, restore=2.0, start=3.0,
        prepare=4.0, compile=5.0, data=6.0, evaluate=7.0,
    )  # fmt: skip
    found = account([one])
    assert found.seconds == {
        "compute": 100, "compile": 5, "data": 6, "checkpoint": 12, "evaluation": 7,
        "start": 7, "lost": 0,
    }  # fmt: skip
    assert found.wall == 137
    assert found.goodput == 100 / 137


def test_steps_beyond_the_checkpoint_are_lost_with_their_seconds():
    killed = session(leg(0, 80, compute=160.0), compute=160.0, save=16.0)
    resumed = session(leg(50, 100, compute=100.0), hour=1, compute=100.0, save=10.0)
    found = account([killed, resumed])
    assert found.lost_steps == 30
    assert found.seconds["lost"] == pytest.approx(60 + 6)
    assert found.seconds["compute"] == pytest.approx(200)
    assert found.wall == pytest.approx(286)


def test_what_never_became_a_step_is_lost_too():
    hung = session(leg(0, 50, compute=100.0, data=3600.0), compute=100.0, data=3600.0)
    found = account([hung, session(leg(50, 60, compute=20.0), compute=20.0)])
    assert (found.lost_steps, found.seconds["lost"]) == (0, 3600)
    assert found.seconds["data"] == 0


def test_a_checkpoint_of_an_earlier_session_loses_all_later_ones():
    sessions = [
        session(leg(0, 60, compute=60.0), compute=60.0),
        session(leg(50, 90, compute=40.0), compute=40.0),
        session(leg(80, 99, compute=19.0), compute=19.0),
        session(leg(40, 100, compute=60.0), compute=60.0),
    ]
    found = account(sessions)
    assert found.lost_steps == 20 + 40 + 19
    # Each step of the hundred counts once.
    assert found.seconds["compute"] == pytest.approx(100)


def test_going_back_within_a_session_loses_steps_as_well():
    both = leg(0, 70, compute=70.0), leg(50, 100, compute=50.0)
    found = account([session(*both, compute=120.0, save=12.0)])
    assert found.lost_steps == 20
    assert found.seconds["compute"] == pytest.approx(100)


def test_the_last_session_has_lost_nothing_before_another_goes_on():
    alone = session(leg(0, 80, compute=160.0, compute_=9.0), compute=169.0)
    assert account([alone]).seconds["lost"] == 0


def test_a_session_that_did_no_step_loses_what_has_to_be_repeated():
    stopped = session(Leg(0, 0, {}, {"evaluate": 8.0}), to_first=None, evaluate=8.0)
    found = account([stopped, session(leg(0, 10, compute=10.0), compute=10.0)])
    assert found.seconds["lost"] == 8
    assert found.to_first_step == (None, 5.0)
    # One that was refused or killed before it knew its step had only started.
    assert account([session(start=3.0)]).seconds["start"] == 3


def test_time_between_sessions_is_stated_apart():
    early, late = session(compute=600.0), session(hour=2, compute=600.0)
    found = account([early, late])
    assert found.wall == 1200
    assert found.between == 2 * 3600 - 600


def test_a_wall_clock_that_was_set_back_changes_no_second():
    early, late = session(hour=5, compute=600.0), session(hour=2, compute=600.0)
    found = account([early, late])
    assert (found.wall, found.between) == (1200, 0)


def test_the_line_says_where_the_time_went():
    killed = leg(0, 80, compute=160.0)
    sessions = [
        session(killed, compute=160.0, save=16.0, compile=20.0),
        session(leg(43, 100, compute=200.0), hour=1, compute=200.0, save=20.0),
    ]
    assert str(account(sessions)) == (
        "Time: 6:56 in 2 sessions; 69 % computing, 7 % saving and restoring, "
        "5 % compiling; 37 steps (1:21) lost to stops or rewinds; 50:00 between "
        "sessions."
    )
    assert str(account(sessions[:1])) == (
        "Time: 3:16 in 1 session; 82 % computing, 10 % compiling, "
        "8 % saving and restoring."
    )
    assert str(account([])) == "Time: 0:00 in 0 sessions; nothing recorded."


def test_a_session_is_what_it_was_after_json():
    one = session(leg(3, 7, compute=1.5, data=2.5), Leg(7, 7, {}, {}), compute=4.0)
    text = json.dumps(dataclasses.asdict(one))
    assert session_from_json(json.loads(text)) == one


@pytest.mark.parametrize(
    "value", [None, [], {}, 3, {"legs": 3}, {"legs": [], "started": "x"}]
)
def test_what_is_no_session_raises_what_is_said(value):
    with pytest.raises(time_account.MALFORMED):
        session_from_json(value)


def test_a_command_s_first_session_counts_from_the_command_s_beginning():
    with time_account.within_command():
        first, second = time_account.spent_before(), time_account.spent_before()
    third = time_account.spent_before()
    times = [sum(spent.values()) for spent in (first, second, third)]
    assert times == sorted(times)
    with time_account.within_command():
        began = sum(time_account._command[0].values())
        assert times[-1] <= began
        assert sum(time_account.spent_before().values()) == began
        assert sum(time_account.spent_before().values()) > began
