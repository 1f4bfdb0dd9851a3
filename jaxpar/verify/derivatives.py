"""Whether the gradient of routers is the derivative of the loss.

A term of the loss that never reaches a gradient is missing on one device, too, so no
comparison of layouts shows it: the loss itself has to be asked.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxpar.train.objective import Sums
from jaxpar.tree import flatten

ROUTER = "w_router"
SMALL_STEPS = 1e-6, 1e-7, 1e-8
"""Steps of central differences, of directions whose elements are some 1."""


def directions(params: Any) -> dict[str, np.ndarray]:
    """A random direction for each router's weights, by path."""
    rng, found = np.random.default_rng(0), {}
    for path, w in sorted(flatten(params).items()):
        if path.rpartition("/")[2] == ROUTER:
            found[path] = rng.standard_normal(w.shape)
    return found


def of_gradient(grads: Any, along: Mapping[str, np.ndarray]) -> dict[str, np.floating]:
    """What a gradient says of how the loss changes along directions."""
    flat = flatten(grads)
    return {path: np.sum(np.asarray(flat[path]) * v) for path, v in along.items()}


def of_loss(
    sums_at: Callable[[str, np.ndarray], Sums], along: Mapping[str, np.ndarray]
) -> dict[str, np.floating]:
    """How the loss itself changes along directions, by central differences.

    sums_at(path, change): the sums where a parameter is changed. A step in which a
    token gets another expert has no derivative; it is made smaller then.
    """

    def difference(path: str, v: np.ndarray) -> np.floating:
        found = np.float64(np.nan)
        for h in SMALL_STEPS:
            up, down = (sums_at(path, sign * h * v) for sign in (1, -1))
            found = (np.float64(up.loss) - np.float64(down.loss)) / (2 * h)
            if _loads(up) == _loads(down):
                break
        return found

    return {path: difference(path, v) for path, v in along.items()}


def _loads(sums: Sums) -> list[list[int]]:
    return [np.asarray(report["load"]).tolist() for report in sums.reports.values()]
