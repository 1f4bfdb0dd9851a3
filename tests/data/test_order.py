"""The order of rows is a pure function of seed, step and row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxpar.data.order import order, orders, places_of, shuffled


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


@given(n=st.integers(1, 600), seed=st.integers(-(2**70), 2**70), epoch=st.integers(0))
def test_the_place_of_a_window_is_where_it_stands(n, seed, epoch):
    places = np.arange(n)
    windows = shuffled(places, n, seed, epoch)
    assert places_of(windows, n, seed, epoch).tolist() == places.tolist()


def sequence(steps, rows, n, skipped=()):
    """The windows of all rows of the first steps, one after another."""
    return np.concatenate([order(7, s, rows, n, skipped) for s in range(steps)])


LISTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 19)), max_size=8)


@given(rows=st.integers(1, 9), n=st.integers(1, 60), far=st.integers(10, 10**6))
def test_the_order_is_the_old_one_before_any_window_is_skipped(rows, n, far):
    for step in range(10):
        old = order(7, step, rows, n)
        assert order(7, step, rows, n, [(far, 0)]).tolist() == old.tolist()
        assert order(7, step, rows, n, []).tolist() == old.tolist()


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), skipped=LISTS)
def test_what_is_left_is_the_old_sequence_without_the_skipped_windows(rows, skipped):
    """The definition, by hand: walk through the epochs, and pass over what is gone."""
    n, steps = 20, 20
    endless = iter(sequence(2 * steps, rows, n))
    wanted = []
    for step in range(steps):
        gone = {window for from_step, window in skipped if from_step <= step}
        remaining = (window for window in endless if window not in gone)
        wanted += [next(remaining) for _ in range(rows)]
    assert sequence(steps, rows, n, skipped).tolist() == wanted


@pytest.mark.parametrize("steps", [9, 50, 200])
def test_every_other_window_is_seen_equally_often(steps):
    n, rows, skipped = 20, 4, [(3, 5), (3, 11), (8, 0)]
    found = sequence(steps, rows, n, skipped)
    assert not {5, 11} & set(found[3 * rows :]) and 0 not in found[8 * rows :]
    others = np.delete(np.bincount(found, minlength=n), [0, 5, 11])
    assert others.max() - others.min() <= 1


@settings(max_examples=20, deadline=None)
@given(steps=st.permutations(range(15)), skipped=LISTS)
def test_no_step_depends_on_another_one_or_on_later_pairs(steps, skipped):
    straight = sequence(15, 4, 20, skipped).reshape(15, 4)
    for step in steps:
        known = [pair for pair in reversed(skipped) if pair[0] <= step]
        assert order(7, step, 4, 20, known).tolist() == straight[step].tolist()


def test_skipping_all_windows_is_refused():
    with pytest.raises(ValueError, match="All 3 windows are skipped"):
        order(0, 5, 4, 3, [(0, 0), (2, 1), (5, 2)])
    assert set(order(0, 4, 4, 3, [(0, 0), (2, 1), (5, 2)])) == {2}


@settings(deadline=None, max_examples=50)
@given(
    rows=st.integers(1, 9),
    n=st.integers(5, 60),
    first=st.integers(0, 10**6),
    skipped=LISTS,
)
def test_steps_computed_together_are_those_computed_alone(rows, n, first, skipped):
    skipped = [(first + from_step, window % n) for from_step, window in skipped][:4]
    together = orders(7, rows, n, skipped)
    for step in [*range(first, first + 15), first]:
        assert together(step).tolist() == order(7, step, rows, n, skipped).tolist()
