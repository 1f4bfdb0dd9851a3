"""A window as the fields of a row."""

import numpy as np

from jaxpar.data.windows import Window


def causal(window: Window) -> dict[str, np.ndarray]:
    """Each token with the one behind it as target.

    Targets have weight 0 across documents, in padding, and where the window says so.
    """
    same = window.segments[1:] == window.segments[:-1]
    scored = same & (window.segments[1:] > 0)
    return {
        "tokens": window.tokens[:-1],
        "targets": window.tokens[1:],
        "positions": window.positions[:-1],
        "segments": window.segments[:-1],
        "weights": window.weights[1:] * scored.astype(np.float32),
    }
