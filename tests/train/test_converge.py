"""Stopping rules decide well, and remember what they saw.

pytest tests/train/test_converge.py
"""

import dataclasses
import itertools
import json
import math
from random import Random

import pytest

from jaxpar.train.actions import StartDecay, Stop
from jaxpar.train.converge import (
    DECAY,
    OVER,
    PLATEAU,
    STILL,
    WARMUP,
    Converged,
    Never,
    phase_of,
)
from jaxpar.train.state import NEVER

RULE = Converged(patience=4, min_improvement=0.01, smoothing=3)


def watch(rule, losses, phase=PLATEAU, every=10, memory=None, start=0):
    """The first wish with its step and memory, and the steps that were best."""
    memory, best = memory or rule.start(), []
    for i, loss in enumerate(losses):
        step = start + i * every
        here = phase(step) if callable(phase) else phase
        memory, wish, is_best = rule.observe(memory, step, loss, here)
        memory = json.loads(json.dumps(memory))
        best += [step] * is_best
        if wish:
            return step, wish, memory, best
    return None, None, memory, best


def falling(n, power=0.3, floor=1.0):
    return [floor + 3 * (i + 1) ** -power for i in range(n)]


def test_never_is_never():
    assert watch(Never(), [1.0] * 500, OVER) == (None, None, {}, [])


def test_a_loss_that_keeps_falling_never_stops():
    assert watch(RULE, falling(2_000, floor=0.0))[1] is None


@pytest.mark.parametrize("power", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("every", [1, 50])
def test_twice_the_steps_of_a_stopped_run_gain_less_than_asked(power, every):
    curve = falling(5_000, power)
    step, wish, *_ = watch(RULE, curve, every=every)
    assert isinstance(wish, StartDecay)
    here = step // every
    assert curve[2 * here] > curve[here] * (1 - RULE.min_improvement)


def test_a_patience_in_evaluations_alone_stops_too_early():
    curve = falling(5_000, 0.3, floor=0.0)
    step, *_ = watch(dataclasses.replace(RULE, share=1.0), curve, every=1)
    assert curve[2 * step] < curve[step] * (1 - 3 * RULE.min_improvement)


def test_a_plateau_that_a_decay_would_end_starts_it_and_stops_at_its_end():
    losses = falling(20, 2.0) + [1.01] * 40
    step, wish, memory, _ = watch(RULE, losses)
    assert wish == StartDecay()
    after, wish, *_ = watch(RULE, [1.01] * 10, DECAY, memory=memory, start=step + 10)
    assert wish is None
    _, wish, *_ = watch(RULE, [0.9], OVER, memory=memory, start=step + 20)
    assert isinstance(wish, Stop) and "decayed" in wish.reason


def test_a_plateau_before_the_rate_falls_on_its_own_does_not_stop():
    flat = [3.0, 2.0] + [1.5 + 0.004 * (-1) ** i for i in range(200)]
    assert watch(RULE, flat, DECAY)[1] is None
    assert watch(RULE, flat, WARMUP)[1] is None
    _, wish, *_ = watch(RULE, flat, OVER)
    assert "fell less than 1.0%" in wish.reason


def test_over_fitting_stops_while_the_rate_still_falls_and_the_best_is_known():
    losses = falling(20, 1.0) + [1.15 * 1.01**i for i in range(30)]
    step, wish, memory, best = watch(RULE, losses, DECAY)
    assert "over-fitting" in wish.reason
    assert step <= 20 * 10 + 80
    assert memory["best"] == {"step": 190, "loss": losses[19]} and best[-1] == 190


def test_noise_and_a_spike_that_heals_are_no_over_fitting():
    for seed, width in itertools.product(range(10), (0.002, 0.005, 0.03)):
        random = Random(seed)
        noisy = [random.gauss(1.0, width) for _ in range(300)]
        assert watch(RULE, noisy, DECAY)[1] is None
    spike = falling(20, 1.0) + [2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1]
    assert watch(RULE, spike, DECAY)[1] is None


def test_over_fitting_at_a_constant_rate_starts_the_decay_and_watches_anew():
    losses = falling(20, 1.0) + [1.2 * 1.01**i for i in range(30)]
    step, wish, memory, _ = watch(RULE, losses)
    assert wish == StartDecay() and memory["lowest"] is None
    assert watch(RULE, [1.3] * 6, DECAY, memory=memory, start=step)[1] is None


def test_a_rate_of_zero_stops():
    assert isinstance(watch(RULE, [3.0], STILL)[1], Stop)


def test_the_best_is_of_raw_loss_and_never_of_one_that_is_no_number():
    *_, best = watch(RULE, [3.0, 1.0, 2.0, math.nan, 0.9, math.inf], DECAY)
    assert best == [0, 10, 40]


def test_decisions_survive_resume_anywhere():
    losses = falling(20, 2.0) + [1.02 + 0.001 * (-1) ** i for i in range(60)]
    step, wish, memory, _ = watch(RULE, losses)
    for cut in range(1, step // 10):
        _, none, half, _ = watch(RULE, losses[:cut])
        assert none is None
        again = watch(RULE, losses[cut:], memory=half, start=cut * 10)
        assert again[:3] == (step, wish, memory)


@pytest.mark.parametrize(
    "wrong",
    [{"patience": 0}, {"smoothing": 0}, {"min_improvement": -0.1}, {"share": 0}],
)
def test_a_rule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Converged(**wrong)


@dataclasses.dataclass(frozen=True)
class Rates:
    """Rises for 2 steps, holds (for ever, or to step 6), falls for 4 to `final`."""

    stable: int = 0
    final: float = 0.0

    def ends(self, decay_from):
        start = 6 if self.stable else decay_from
        return None if start == NEVER else start + 4

    def __call__(self, step, decay_from):
        start = 6 if self.stable else decay_from
        fall = min(max(step - start, 0), 4) / 4
        return min((step + 1) / 3, 1 - fall * (1 - self.final))


def test_a_schedule_is_asked_for_its_phase():
    waits = [phase_of(Rates(), step, NEVER) for step in (0, 1, 2, 50)]
    assert waits == [WARMUP, WARMUP, PLATEAU, PLATEAU]
    told = [phase_of(Rates(), step, 20) for step in (20, 23, 24)]
    assert told == [DECAY, DECAY, STILL]
    alone = [phase_of(Rates(1, final=0.1), step, NEVER) for step in (0, 4, 9, 10, 99)]
    assert alone == [WARMUP, DECAY, DECAY, OVER, OVER]
