"""The metrics.jsonl of a run: reading it, and removing steps that were not saved."""

from pathlib import Path
from typing import Any

from jaxpar import atomic
from jaxpar.guard.sealed_json import json_object


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a later line of the same step and split counts.

    A last line that a crash cut short is passed over.
    """
    kept: dict[tuple, dict[str, Any]] = {}
    for line in Path(path).read_text().splitlines():
        if (row := _row(line)) is None:
            continue
        key = (row.get("step"), row.get("split"))
        kept.pop(key, None)
        kept[key] = row
    return sorted(kept.values(), key=lambda row: row.get("step", 0))


def last_evaluation(path: str | Path, *, up_to: int) -> dict[str, Any] | None:
    """The newest evaluation that the file holds of a step up to `up_to`.

    Rows of the user's own events, which have a split, too, are none.
    """
    if not Path(path).is_file():
        return None
    rows = reversed(read_metrics(path))
    scores = (row for row in rows if row.get("split") == "heldout")
    return next((row for row in scores if row["step"] <= up_to), None)


def written_after(path: str | Path, step: int) -> tuple[int, float]:
    """The last step that has a row, and the seconds of the steps after `step`."""
    if not Path(path).is_file():
        return step, 0.0
    last, seconds = step, 0.0
    for row in read_metrics(path):
        number = row.get("step")
        if "split" not in row and isinstance(number, int) and number > step:
            last, seconds = max(last, number), seconds + (row.get("seconds") or 0.0)
    return last, seconds


def drop_rows_after(path: Path, step: int) -> None:
    """Removes the rows of all later steps; the file is replaced whole or not at all.

    They are of a session that was killed before it saved them. A line that is no row
    is kept; where there is nothing to remove, the file is not touched.
    """
    if not path.is_file():
        return
    # A link stays one, and its file is replaced.
    path = path.resolve()
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if not _is_after(line, step)]
    if len(kept) == len(lines):
        return
    atomic.write_bytes(path, b"".join(kept))


def _is_after(line: bytes, step: int) -> bool:
    number = (_row(line) or {}).get("step")
    return isinstance(number, int) and number > step


def _row(line: str | bytes) -> dict[str, Any] | None:
    """The JSON object of a line; None where it is none."""
    try:
        return json_object(line)
    except ValueError:
        return None
