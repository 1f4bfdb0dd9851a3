"""The order of rows: which window is in which row of which step."""

import numpy as np

from jaxpar.errors import UserError

ROUNDS = 8


def order(seed: int, step: int, rows: int, n_windows: int) -> np.ndarray:
    """Window numbers [rows] of a step; each epoch has a permutation of its own.

    Row i of step s is number s * rows + i of the endless sequence of epochs, so it
    depends only on (seed, s, i), and any step is computed without those before it.

    Raises:
      UserError: there are no windows.
    """
    if n_windows < 1:
        raise UserError(f"n_windows={n_windows}: there are no windows to train on.")
    numbers = step * rows + np.arange(rows, dtype=np.int64)
    epochs, places = numbers // n_windows, numbers % n_windows
    ids = np.empty(rows, np.int64)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        ids[in_epoch] = shuffled(places[in_epoch], n_windows, seed, int(epoch))
    return ids


def shuffled(places: np.ndarray, n: int, *key: int) -> np.ndarray:
    """A permutation of range(n), chosen by the key, applied to each place.

    A Feistel network (Luby and Rackoff, 1988) on the next even number of bits, applied
    again where its result is n or more (cycle walking: Black and Rogaway, 2002).
    """
    half = max((int(n - 1).bit_length() + 1) // 2, 1)
    keys = _round_keys(key)
    values = _feistel(places.astype(np.uint64), half, keys)
    while (outside := values >= n).any():
        values[outside] = _feistel(values[outside], half, keys)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: int, keys: list[np.uint64]) -> np.ndarray:
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right ^ key) & mask)
    return (left << bits) | right


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
