"""Reading the metrics.jsonl of a run."""

import json
from pathlib import Path
from typing import Any


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a later line of the same step and split counts.

    A last line that a crash cut short is passed over.
    """
    kept: dict[tuple, dict[str, Any]] = {}
    for line in Path(path).read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        key = (row.get("step"), row.get("split"))
        kept.pop(key, None)
        kept[key] = row
    return sorted(kept.values(), key=lambda row: row.get("step", 0))


def last_evaluation(path: str | Path) -> dict[str, Any] | None:
    """The newest evaluation that the file holds."""
    if not Path(path).is_file():
        return None
    scores = [row for row in read_metrics(path) if "split" in row]
    return scores[-1] if scores else None
