"""Steps whose loss, gradients or updates are not finite: found, and not applied."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpar.data.order import Skipped, order
from jaxpar.errors import Diverged
from jaxpar.metrics.sinks import Row
from jaxpar.tree import path_of

OnNonfinite = Literal["stop", "skip"]
SHOWN_WINDOWS = 16
"""Windows of a batch that a message lists; the step's row in metrics.jsonl has all."""


def count_nonfinite(tree: Any) -> list[Float[Array, ""]]:
    """How many elements of each leaf are not finite; 0 of integers.

    As float32, the type in which devices add up the gradients' norm, too.
    """
    return [jnp.sum(~jnp.isfinite(x), dtype=jnp.float32) for x in jax.tree.leaves(tree)]


def find_nonfinite(
    grads: Any, updates: Any, *, norm: Float[Array, ""], loss: Float[Array, ""]
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """1 where anything is not finite, else 0; and the number of the first such value.

    norm: of all gradients. The numbers are those of `value_names`.
    """
    norm_and_loss = count_nonfinite((norm, loss))
    found = [*count_nonfinite(grads), *norm_and_loss, *count_nonfinite(updates)]
    is_nonfinite = jnp.stack(found) > 0
    return jnp.any(is_nonfinite).astype(jnp.float32), jnp.argmax(is_nonfinite)


def value_names(params: Any) -> list[str]:
    """What the numbers of `find_nonfinite` stand for, of a model's parameter tree."""
    paths = [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
    return [
        *(f"the gradient of {path}" for path in paths),
        "the norm of all gradients",
        "the loss",
        *(f"the update of {path}" for path in paths),
    ]


def keep_where(skipped: Float[Array, ""], old: Any, new: Any) -> Any:
    """The old tree where `skipped` is 1, else the new one, bit for bit."""
    return jax.tree.map(lambda a, b: jnp.where(skipped > 0, a, b), old, new)


def make_finder() -> Callable[[Any], str]:
    """A function from a tree to the path of its first leaf that is not finite.

    "" where all are finite. It waits for the device, and reads the tree once.
    """
    count = jax.jit(lambda tree: jnp.stack([*count_nonfinite(tree), jnp.float32(0)]))

    def find(tree: Any) -> str:
        counts = jax.device_get(count(tree))
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        bad = (keys for (keys, _), n in zip(leaves, counts, strict=False) if n)
        return next(map(path_of, bad), "")

    return find


class NonfiniteSteps:
    """What follows from a step that was not applied: the run stops, or goes on.

    names: as of `value_names`. max_skipped: with "skip", so many successive steps stop
    the run, too. windows_of: the windows of a step's batch. saved: a sentence on what
    is saved.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        policy: OnNonfinite,
        max_skipped: int,
        windows_of: Callable[[int], Sequence[int]],
        saved: Callable[[], str],
    ):
        self._names, self._policy, self._max_skipped = names, policy, max_skipped
        self._windows_of, self._saved = windows_of, saved
        self._successive = 0

    def judge(self, row: Row) -> tuple[Row, Diverged | None]:
        """A step's row as it is to be written, and the error that ends the run.

        The row of a step that was not applied names its first value that is not finite
        and its windows.
        """
        number = int(row["first_nonfinite"])
        row = {key: value for key, value in row.items() if key != "first_nonfinite"}
        if not row["skipped"]:
            self._successive = 0
            return row, None
        self._successive += 1
        windows = [int(i) for i in self._windows_of(row["step"])]
        row |= {"first_nonfinite": self._names[number], "windows": windows}
        if self._policy == "skip" and self._successive < self._max_skipped:
            return row, None
        advice = self._advice(row)
        return row, Diverged(f"{self._explain(row)} {self._saved()} {advice}")

    def _explain(self, row: Row) -> str:
        return (
            f"Step {row['step']} was not applied: {row['first_nonfinite']} is not "
            f"finite (loss {row['loss']:.4g}); its batch has the windows "
            f"{listed(row['windows'])}."
        )

    def _advice(self, row: Row) -> str:
        remedy = "Lower optim.peak_lr, or clip gradients more"
        if row["step"] == 1 and not math.isfinite(row["loss"]):
            return "No update was made before it: look at the model and its data."
        if self._policy == "skip":
            return f"It is number {self._successive} in a row. {remedy}."
        return f"{remedy}; on_nonfinite=skip, in a new run, passes over such a batch."


def listed(windows: Sequence[int]) -> str:
    """The first windows of a batch, as a message names them."""
    more = len(windows) - SHOWN_WINDOWS
    shown = ", ".join(map(str, windows[:SHOWN_WINDOWS]))
    return f"{shown} and {more} more (all are in metrics.jsonl)" if more > 0 else shown


def stop_at_loss(row: Row) -> tuple[Row, Diverged | None]:
    """The judgement of a step that does not say whether it was applied: by its loss."""
    if math.isfinite(row["loss"]):
        return row, None
    return row, Diverged(
        f"The training loss of step {row['step']} is {row['loss']}; lower "
        "optim.peak_lr or clip gradients."
    )


def windows_by_step(
    seed: int, rows: int, n_windows: int, skipped: Skipped = ()
) -> Callable[[int], list[int]]:
    """A function from a step to the windows of its batch, as `order` makes it."""

    def windows_of(step: int) -> list[int]:
        # Step 1 is the first one, made of the batch of step 0.
        return order(seed, step - 1, rows, n_windows, skipped).tolist()

    return windows_of
