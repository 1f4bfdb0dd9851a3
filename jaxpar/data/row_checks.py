"""What can be wrong with the rows that an objective's `row` returns."""

from collections.abc import Sequence
from typing import Any

import numpy as np

NO_NUMBERS = "OSUMmV"
"""Kinds of NumPy's types that no model computes with, such as texts and objects."""


def fault_of_row(row: Any, vocab_size: int | None) -> str | None:
    """What is wrong with a row, in words; None where nothing is.

    vocab_size: the model's, to check `tokens` and `targets` by: JAX would take another
    id, silently. Targets of weight 0 are not read. None checks no ids.
    """
    if not isinstance(row, dict) or not row:
        return f"row() returned a {type(row).__name__}, not a dictionary of arrays"
    for name, values in row.items():
        if fault := _fault_of_field(name, values):
            return fault
    if len({np.shape(values)[0] for values in row.values()}) > 1:
        return f"its fields have different lengths: {_lengths(row)}"
    if "weights" not in row:
        there = f"there are {[*row]}"
        return f"it has no field 'weights', which says what is scored; {there}"
    if vocab_size is None:
        return None
    for name in ("tokens", "targets"):
        if name in row and (fault := _fault_of_ids(row, name, vocab_size)):
            return fault
    return None


def fault_of_rows(rows: Sequence[dict[str, np.ndarray]]) -> tuple[int, str] | None:
    """The first row that is unlike row 0, and how; None where all are alike."""
    first = {name: np.shape(values) for name, values in rows[0].items()}
    for i, row in enumerate(rows):
        if {name: np.shape(values) for name, values in row.items()} != first:
            return i, f"its fields are {_lengths(row)}, and before {_lengths(rows[0])}"
    return None


def _fault_of_field(name: Any, values: Any) -> str | None:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError) as error:
        # NumPy's word for lists of different lengths is "inhomogeneous".
        return f"its field {name!r} is no array: {error}"
    if not array.shape:
        kind = type(values).__name__
        is_number = array.dtype.kind not in NO_NUMBERS
        what = "a single number" if is_number else f"of type {kind}"
        return f"its field {name!r} is {what}; each field is [T]"
    if array.dtype.kind in NO_NUMBERS and array.dtype.name[:2] not in ("bf", "fl"):
        return f"its field {name!r} holds {array.dtype}, not numbers"
    return None


def _fault_of_ids(row: dict[str, Any], name: str, vocab_size: int) -> str | None:
    ids = np.asarray(row[name])
    if not np.issubdtype(ids.dtype, np.integer):
        return f"its {name} are {ids.dtype}; token ids are integers"
    if not ids.size or (0 <= ids.min() and ids.max() < vocab_size):
        return None
    is_wrong = (ids < 0) | (ids >= vocab_size)
    weights = np.asarray(row.get("weights", 1))
    if name == "targets" and weights.shape in ((), ids.shape):
        is_wrong &= weights != 0
    if not is_wrong.any():
        return None
    place = int(np.argmax(is_wrong))
    return (
        f"its {name} have the id {ids.flat[place]} at position {place}, which is not "
        f"in the model's vocabulary of {vocab_size}: ids are 0 to {vocab_size - 1}"
    )


def _lengths(row: dict[str, np.ndarray]) -> str:
    """Each field's length, or its shape where it has more axes than one."""
    shapes = {name: np.shape(values) for name, values in row.items()}
    return ", ".join(
        f"{name} {shape[0] if len(shape) == 1 else list(shape)}"
        for name, shape in shapes.items()
    )
