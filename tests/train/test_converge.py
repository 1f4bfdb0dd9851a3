"""Stopping rules decide well, and their memory survives a resume.

pytest tests/train/test_converge.py
"""

import dataclasses
import itertools
import json
import math
from random import Random

import pytest

from jaxpar.optim.schedule import NEVER, Schedule
from jaxpar.train.actions import StartDecay, Stop
from jaxpar.train.converge import Converged, Never, Phase, StopRule, Verdict, phase_of

WARMUP, PLATEAU, DECAY, FINAL, ZERO = Phase
RULE = Converged(patience=4, min_improvement=0.01, smoothing=3)


def watch(rule, losses, phase=PLATEAU, every=10, memory=None, start=0):
    """The first action with its step and memory, and the steps that were best."""
    memory, best = memory or rule.start(), []
    for i, loss in enumerate(losses):
        step = start + i * every
        verdict = rule.observe(memory, step, loss, phase)
        memory = json.loads(json.dumps(verdict.memory))
        best += [step] * verdict.is_best
        if verdict.action:
            return step, verdict.action, memory, best
    return None, None, memory, best


def falling(n, power=0.3, floor=1.0):
    return [floor + 3 * (i + 1) ** -power for i in range(n)]


def test_never_does_not_stop():
    assert watch(Never(), [1.0] * 500, FINAL) == (None, None, {}, [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, 2, 5])
def test_an_evaluation_that_is_not_finite_takes_no_part(value, at):
    # It falls by 3 % each time: no rule may begin a decay.
    curve = [4 * 0.97**i for i in range(30)]
    spoiled = [*curve[:at], value, *curve[at:]]
    for rule in (Converged(), RULE):
        assert watch(rule, spoiled)[:2] == (None, None)
    memory = watch(RULE, curve[:at])[2]
    assert RULE.observe(memory, 1_000, value, PLATEAU) == (memory, None, False)


def test_a_loss_that_is_not_finite_delays_no_end_of_the_decay():
    verdict = RULE.observe(RULE.start(), 10, math.nan, ZERO)
    assert isinstance(verdict.action, Stop)


def test_a_loss_that_keeps_falling_never_stops():
    assert watch(RULE, falling(2_000, floor=0.0))[1] is None


@pytest.mark.parametrize("power", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("every", [1, 50])
def test_twice_the_steps_of_a_stopped_run_improve_less_than_the_minimum(power, every):
    curve = falling(5_000, power)
    step, action, *_ = watch(RULE, curve, every=every)
    assert isinstance(action, StartDecay)
    i = step // every
    assert curve[2 * i] > curve[i] * (1 - RULE.min_improvement)


def test_a_patience_in_evaluations_alone_stops_too_early():
    curve = falling(5_000, 0.3, floor=0.0)
    step, *_ = watch(dataclasses.replace(RULE, share=1.0), curve, every=1)
    assert curve[2 * step] < curve[step] * (1 - 3 * RULE.min_improvement)


def test_a_plateau_begins_a_decay_that_can_begin_and_the_run_stops_at_its_end():
    losses = falling(20, 2.0) + [1.01] * 40
    step, action, memory, _ = watch(RULE, losses)
    assert action == StartDecay()
    _, action, *_ = watch(RULE, [1.01] * 10, DECAY, memory=memory, start=step + 10)
    assert action is None
    _, action, *_ = watch(RULE, [0.9], FINAL, memory=memory, start=step + 20)
    assert isinstance(action, Stop) and "decayed" in action.reason


def test_a_plateau_before_or_in_a_planned_decay_does_not_stop():
    flat = [3.0, 2.0] + [1.5 + 0.004 * (-1) ** i for i in range(200)]
    assert watch(RULE, flat, DECAY)[1] is None
    assert watch(RULE, flat, WARMUP)[1] is None
    _, action, *_ = watch(RULE, flat, FINAL)
    assert "fell less than 1.0%" in action.reason


def test_over_fitting_stops_while_the_rate_still_falls_and_the_best_is_known():
    losses = falling(20, 1.0) + [1.15 * 1.01**i for i in range(30)]
    step, action, memory, best = watch(RULE, losses, DECAY)
    assert "over-fitting" in action.reason
    assert step <= 20 * 10 + 80
    assert memory["best"] == {"step": 190, "loss": losses[19]} and best[-1] == 190


def test_neither_noise_nor_a_spike_that_recovers_is_over_fitting():
    for seed, width in itertools.product(range(10), (0.002, 0.005, 0.03)):
        random = Random(seed)
        noisy = [random.gauss(1.0, width) for _ in range(300)]
        assert watch(RULE, noisy, DECAY)[1] is None
    spike = falling(20, 1.0) + [2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4, 1.3, 1.2, 1.1]
    assert watch(RULE, spike, DECAY)[1] is None


def test_over_fitting_at_a_constant_rate_begins_the_decay_and_a_new_curve():
    losses = falling(20, 1.0) + [1.2 * 1.01**i for i in range(30)]
    step, action, memory, _ = watch(RULE, losses)
    assert action == StartDecay() and memory["lowest"] is None
    assert watch(RULE, [1.3] * 6, DECAY, memory=memory, start=step)[1] is None


def test_a_rate_of_zero_stops():
    assert isinstance(watch(RULE, [3.0], ZERO)[1], Stop)


def test_the_best_is_that_of_lowest_raw_loss_which_is_finite():
    *_, best = watch(RULE, [3.0, 1.0, 2.0, math.nan, 0.9, math.inf], DECAY)
    assert best == [0, 10, 40]


def test_a_resume_anywhere_changes_no_decision():
    losses = falling(20, 2.0) + [1.02 + 0.001 * (-1) ** i for i in range(60)]
    step, action, memory, _ = watch(RULE, losses)
    for cut in range(1, step // 10):
        _, nothing, saved, _ = watch(RULE, losses[:cut])
        assert nothing is None
        resumed = watch(RULE, losses[cut:], memory=saved, start=cut * 10)
        assert resumed[:3] == (step, action, memory)


@pytest.mark.parametrize(
    "wrong",
    [{"patience": 0}, {"smoothing": 0}, {"min_improvement": -0.1}, {"share": 0.0}],
)
def test_a_field_out_of_bounds_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Converged(**wrong)


def test_a_rule_has_to_define_its_memory_and_its_decisions():
    class Half(StopRule):
        def start(self):
            return {}

    with pytest.raises(TypeError, match="observe"):
        Half()
    assert Never().observe({}, 0, 1.0, PLATEAU) == Verdict({}, None, False)


def test_the_phase_is_found_from_the_rates_and_the_end_of_a_schedule():
    waits = Schedule(1.0, 3, -1, 4, 0.0, "linear")
    before = [phase_of(waits, step, NEVER) for step in (0, 1, 2, 50)]
    assert before == [WARMUP, WARMUP, PLATEAU, PLATEAU]
    begun = [phase_of(waits, step, 20) for step in (20, 23, 24)]
    assert begun == [DECAY, DECAY, ZERO]
    planned = Schedule(1.0, 3, 3, 4, 0.1, "linear")
    assert phase_of(planned, 4, NEVER) == PLATEAU
    # A decay that follows the warm-up at once cannot begin earlier.
    cosine = Schedule(1.0, 3, 0, 7, 0.1, "cosine")
    phases = [phase_of(cosine, step, NEVER) for step in (0, 4, 9, 10, 99)]
    assert phases == [WARMUP, DECAY, DECAY, FINAL, FINAL]
