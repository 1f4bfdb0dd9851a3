"""The order of rows: which window is in which row of which step."""

import functools
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from jaxpar.errors import UserError

ROUNDS = 8
TOGETHER = 4_096
"""Rows whose windows are computed together, where a step has fewer."""
Skipped = Sequence[tuple[int, int]]
"""Pairs (from_step, window): the window is in no batch from the one of that step on."""


def order(
    seed: int, step: int, rows: int, n_windows: int, skipped: Skipped = ()
) -> np.ndarray:
    """Window numbers [rows] of a step; each epoch has a permutation of its own.

    Row i of step s is number s * rows + i of the endless sequence of epochs, so it
    depends only on (seed, s, i), and any step is computed without those before it.

    From a skipped window's step on, the sequence goes on from where it is without that
    window: what is left of the epoch, and every later epoch, holds each other window
    once. The order of step s depends on the pairs with from_step <= s only.

    Raises:
      UserError: there are no windows, or all are skipped.
    """
    return _long_order(seed, step, rows, n_windows, skipped, rows)


def orders(
    seed: int, rows: int, n_windows: int, skipped: Skipped = ()
) -> Callable[[int], np.ndarray]:
    """`order` as a function of the step, which computes some steps together."""
    together = max(min(TOGETHER, n_windows) // rows, 1)

    @functools.lru_cache(maxsize=4)
    def some(first: int) -> np.ndarray:
        n = rows * together
        return _long_order(seed, first, rows, n_windows, skipped, n).reshape(-1, rows)

    def of(step: int) -> np.ndarray:
        first = step - step % together
        if any(first < from_step < first + together for from_step, _ in skipped):
            return order(seed, step, rows, n_windows, skipped)
        return some(first)[step - first]

    return of


def _long_order(
    seed: int, step: int, rows: int, n_windows: int, skipped: Skipped, n: int
) -> np.ndarray:
    """The windows of n rows from a step's first row on, if no pair begins in them."""
    if n_windows < 1:
        raise UserError(f"n_windows={n_windows}: there are no windows to train on.")
    numbers = _numbers(seed, step, rows, n_windows, skipped, n)
    epochs, places = numbers // n_windows, numbers % n_windows
    ids = np.empty(n, np.int64)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        ids[in_epoch] = shuffled(places[in_epoch], n_windows, seed, int(epoch))
    return ids


def shuffled(places: np.ndarray, n: int, *key: int) -> np.ndarray:
    """A permutation of range(n), chosen by the key, applied to each place.

    A Feistel network (Luby and Rackoff, 1988) on the next even number of bits, applied
    again where its result is n or more (cycle walking: Black and Rogaway, 2002).
    """
    half, keys = _half_of(n), _round_keys(key)
    return _below(n, lambda values: _feistel(values, half, keys), places)


def places_of(windows: np.ndarray, n: int, *key: int) -> np.ndarray:
    """The inverse of `shuffled`: where in the permutation each window stands."""
    half, keys = _half_of(n), _round_keys(key)

    def back(values: np.ndarray) -> np.ndarray:
        # A round is its own inverse, but for the exchange of the halves.
        there = _feistel(_exchanged(values, half), half, keys[::-1])
        return _exchanged(there, half)

    return _below(n, back, windows)


def _below(
    n: int, permuted: Callable[[np.ndarray], np.ndarray], values: np.ndarray
) -> np.ndarray:
    """A permutation of more numbers, as one of those below n: by cycle walking."""
    values = permuted(values.astype(np.uint64))
    while (outside := values >= n).any():
        values[outside] = permuted(values[outside])
    return values.astype(np.int64)


def _numbers(
    seed: int, step: int, rows: int, n_windows: int, skipped: Skipped, n: int
) -> np.ndarray:
    """Which elements of the endless sequence of epochs are n rows from a step on."""
    begun = sorted(pair for pair in skipped if pair[0] <= step)
    start, since, gone = 0, 0, np.empty(0, np.int64)
    for from_step, pairs in itertools.groupby(begun, key=lambda pair: pair[0]):
        before = np.array([(from_step - since) * rows])
        start = int(_passing_over(gone, start, before, n_windows, seed)[0])
        since = from_step
        gone = np.union1d(gone, [window for _, window in pairs])
    ahead = (step - since) * rows + np.arange(n, dtype=np.int64)
    return _passing_over(gone, start, ahead, n_windows, seed)


def _passing_over(
    gone: np.ndarray, start: int, ahead: np.ndarray, n: int, seed: int
) -> np.ndarray:
    """The elements that come `ahead` places after `start`, if some are not counted.

    gone: the windows that are not counted.
    """
    if not gone.size:
        return start + ahead
    left = n - gone.size
    if left < 1:
        raise UserError(f"All {n} windows are skipped: there are none to train on.")
    epoch, place = divmod(start, n)
    # How many places of the first epoch are counted, and lie before the start.
    counted = place - np.searchsorted(_sorted_places(gone, n, seed, epoch), place)
    epochs, ranks = np.divmod(counted + ahead, left)
    numbers = np.empty_like(ahead)
    for later in np.unique(epochs):
        inside = epochs == later
        there = _sorted_places(gone, n, seed, epoch + int(later))
        # As many of them lie before the counted place of each rank.
        passed = np.searchsorted(there - np.arange(gone.size), ranks[inside], "right")
        numbers[inside] = (epoch + later) * n + ranks[inside] + passed
    return numbers


def _sorted_places(windows: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    return np.sort(places_of(windows, n, seed, epoch))


def _half_of(n: int) -> int:
    """Half of the bits that hold each number below n; 1 or more."""
    return max((int(n - 1).bit_length() + 1) // 2, 1)


def _feistel(values: np.ndarray, half: int, keys: list[np.uint64]) -> np.ndarray:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << bits) | right


def _exchanged(values: np.ndarray, half: int) -> np.ndarray:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    return ((values & mask) << bits) | (values >> bits)


def _round_keys(key: tuple[int, ...]) -> list[np.uint64]:
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _mixed(state ^ np.uint64(part % (1 << 64)))
    return [_mixed(state ^ np.uint64(i + 1))[0] for i in range(ROUNDS)]


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014), elementwise."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
