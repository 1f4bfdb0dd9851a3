"""The order of rows is a pure function of seed, step and row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpar.data.order import order, shuffled


@given(n=st.integers(1, 600), seed=st.integers(-(2**70), 2**70))
def test_an_epoch_holds_every_window_once(n, seed):
    assert sorted(order(seed, 0, n, n)) == list(range(n))


@given(step=st.integers(0, 10**9), rows=st.integers(1, 40), n=st.integers(1, 50))
def test_epochs_do_not_wait_for_a_step_to_end(step, rows, n):
    found = order(7, step, rows, n)
    numbers = step * rows + np.arange(rows)
    again = [order(7, int(number), 1, n)[0] for number in numbers]
    assert found.tolist() == again


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {
        tuple(order(seed, step, 50, 50)) for seed in range(5) for step in range(5)
    }
    assert len(orders) == 25


def test_the_permutation_is_close_to_uniform():
    n, trials = 6, 3_000
    counts = np.zeros((n, n))
    for seed in range(trials):
        counts[np.arange(n), shuffled(np.arange(n), n, seed, 0)] += 1
    # Chi-squared with 25 degrees of freedom exceeds 65 once in 50,000 times.
    assert ((counts - trials / n) ** 2 / (trials / n)).sum() < 65


def test_no_windows_are_refused():
    with pytest.raises(ValueError, match="n_windows=0"):
        order(0, 0, 4, 0)
