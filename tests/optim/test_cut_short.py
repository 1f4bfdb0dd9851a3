"""A run that ends before its learning rate's decay says so, and what to type.

pytest tests/optim/test_cut_short.py
"""

import dataclasses
import re

import jax.numpy as jnp
import pytest

from experiments.quickstart import experiment
from jaxpar.optim.cut_short import cut_short
from jaxpar.optim.optimizer import AdamW


def test_a_shortened_quickstart_says_where_its_rate_ends():
    said = cut_short(experiment.optim, 30)
    assert "decay ends at step 600, after num_steps=30" in said
    assert "at 98% of its peak" in said and "--num-steps 600" in said
    assert cut_short(experiment.optim, 600) == ""


@pytest.mark.parametrize("num_steps", [21, 30, 599])
def test_what_is_to_be_typed_ends_both_together(num_steps):
    (decay,) = re.findall(r"decay-steps (\d+)", cut_short(experiment.optim, num_steps))
    shorter = dataclasses.replace(experiment.optim, decay_steps=int(decay))
    assert cut_short(shorter, num_steps) == ""


def test_a_run_that_ends_in_its_warm_up_is_not_helped_by_a_shorter_decay():
    said = cut_short(experiment.optim, 10)
    assert "at 50% of its peak" in said and "decay-steps" not in said


class Steps:
    """A schedule of one's own: halves the rate every ten steps, up to an end."""

    def __init__(self, end):
        self.end = end

    def __call__(self, step, decay_from):
        return jnp.float32(0.5) ** (step // 10)

    def ends(self, decay_from):
        return self.end


@dataclasses.dataclass(frozen=True)
class Halving(AdamW):
    """An optimizer with it."""

    end: int | None = 40

    @property
    def schedule(self):
        return Steps(self.end)


def test_a_schedule_of_ones_own_is_asked():
    optim = Halving(peak_lr=1.0, warmup_steps=0, decay_steps=7)
    said = cut_short(optim, 25)
    assert "ends at step 40" in said and "at 25% of its peak" in said
    assert "--num-steps 40" in said and "decay-steps" not in said
    assert cut_short(dataclasses.replace(optim, end=None), 25) == ""


def test_a_decay_that_a_rule_begins_has_no_end_to_be_cut():
    assert cut_short(AdamW(1.0, 10, 40, -1), 20) == ""
