"""Inputs, targets and loss weights of a row, made from a window of tokens."""

import numpy as np

from jaxpar.data.windows import Window


def causal(window: Window) -> dict[str, np.ndarray]:
    """Next-token prediction: the fields of one row, each [T].

    A target has weight 0 in padding, where it is of another document than its input,
    and where its own weight in the window is 0.
    """
    same_document = window.segments[1:] == window.segments[:-1]
    scored = same_document & (window.segments[1:] > 0)
    return {
        "tokens": window.tokens[:-1],
        "targets": window.tokens[1:],
        "positions": window.positions[:-1],
        "segments": window.segments[:-1],
        "weights": window.weights[1:] * scored.astype(np.float32),
    }
