"""The order of tokens in which causal attention is balanced over devices."""

import numpy as np


def zigzag(tokens: np.ndarray, n_devices: int) -> np.ndarray:
    """The tokens of a row [T], as they lie on the devices that split it.

    Of C devices the i-th gets the i-th of 2C chunks and the i-th from the end, so that
    all compute equally much of a causal mask (Brandon et al., 2023). 2C divides T.
    """
    halves = tokens.reshape(2, n_devices, -1)
    from_start, from_end = halves[0], halves[1, ::-1]
    return np.concatenate([from_start, from_end], axis=1).reshape(-1)
