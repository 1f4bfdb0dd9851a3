"""Each second belongs to one phase, the innermost.

pytest tests/guard/test_phases.py
"""

import pytest

from jaxpar.guard.phases import Phases


class Clock:
    time = 0.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


def test_every_second_counts_for_the_innermost_phase_only(clock):
    phases = Phases(clock)
    clock.time = 1
    with phases.doing("compute"):
        clock.time = 3
        with phases.doing("evaluate"):
            clock.time = 7
        clock.time = 8
    clock.time = 10
    spent = {phase: s for phase, s in phases.seconds().items() if s}
    assert spent == {"start": 3, "compute": 3, "evaluate": 4}


def test_a_phase_that_fails_is_left(clock):
    phases = Phases(clock)
    with pytest.raises(OSError), phases.doing("save"):
        raise OSError
    assert phases.present() == "start"
