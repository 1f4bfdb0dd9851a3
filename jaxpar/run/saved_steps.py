"""The record of the newest step that a run has saved, kept beside its checkpoints.

It outlives the checkpoints: where they are gone, a run is not started anew unasked.
"""

from pathlib import Path

from jaxpar.errors import UserError
from jaxpar.guard.sealed_json import read_json, write_json
from jaxpar.metrics.metrics_file import read_metrics

REMEDY = (
    "So it is unknown whether the run had checkpoints: restore it, or start a new run "
    "with another --run-dir."
)


class SavedSteps:
    """A handle on saved.json: {"step": N}, or null before anything was saved."""

    def __init__(self, path: Path):
        self.path = path

    def begin(self) -> None:
        """Says that nothing has been saved, where nothing is said yet."""
        if not self.path.exists():
            write_json(self.path, {"step": None})

    def add(self, step: int) -> None:
        """Says that this step is saved."""
        write_json(self.path, {"step": step})

    def evidence(self, metrics: Path) -> str:
        """What says that the run has saved a step, in words; empty where nothing does.

        metrics: its metrics.jsonl, which speaks for the runs of older versions: they
        have no saved.json.

        Raises:
          UserError: saved.json is damaged.
        """
        try:
            record = read_json(self.path, remedy=REMEDY)
        except FileNotFoundError:
            return _evidence_of(metrics)
        if "step" not in record:
            raise UserError(f"{self.path} is damaged: it names no step. {REMEDY}")
        step = record["step"]
        return (
            "" if step is None else f"{self.path.name} says that it saved step {step}"
        )


def _evidence_of(metrics: Path) -> str:
    if not metrics.is_file():
        return ""
    steps = [row.get("step") for row in read_metrics(metrics)]
    newest = max((step for step in steps if isinstance(step, int)), default=0)
    return f"{metrics.name} has metrics of step {newest}" if newest > 0 else ""
