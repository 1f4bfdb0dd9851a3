"""Charts of a run's losses: from its file, or live while it trains."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxpar.errors import UserError
from jaxpar.look import figures
from jaxpar.look.figures import COLORS, INK
from jaxpar.metrics.metrics_file import read_metrics
from jaxpar.metrics.sinks import Row
from jaxpar.train.actions import Action
from jaxpar.train.loop import History
from jaxpar.train.state import TrainState


def plot_losses(run: Any, path: str | Path | None = None) -> Any:
    """A matplotlib Figure of a run's losses, of training and held out.

    run: its directory, as a path, a RunDir or an OpenRun. path: where to write it, too.

    Raises:
      UserError: the run has no metrics.jsonl yet, or matplotlib is not installed.
    """
    run = getattr(run, "run_dir", run)
    folder = Path(getattr(run, "path", run))
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise UserError(f"{folder} has no metrics.jsonl: no step of it was logged yet.")
    rows = read_metrics(file)
    scores = [row for row in rows if row.get("split") == "heldout"]
    steps = [row for row in rows if "split" not in row]
    return figures.written(_draw(steps, scores, folder.name), path)


class LiveLosses:
    """An event that draws all losses so far, in place, under a notebook's cell.

    It reads what Log has fetched: `pretrain.main` has one; `fit` needs one before it.
    Outside of a notebook it does nothing. every: steps between two drawings;
    evaluations are drawn at once.
    """

    def __init__(self, *, every: int = 10):
        self._every = every
        self._scores: list[Row] = []
        self._shown: Any = None

    def due(self, step: int, history: History) -> bool:
        """On schedule, at the last step, and where there was an evaluation."""
        regular = step % self._every == 0 or step == history.num_steps
        return _in_notebook() and (regular or _evaluated(step, history))

    def run(self, step: int, state: TrainState, history: History) -> Action:
        """Draws the chart, in the place of the last one."""
        from IPython.display import display

        if history.evaluation is not None and _evaluated(step, history):
            loss = history.evaluation.loss
            self._scores.append({"step": step, "nats_per_token": loss})
        if not (history.rows or self._scores):
            return
        chart = _draw(history.rows, self._scores, f"step {step:,}")
        if self._shown is None:
            self._shown = display(chart, display_id=True)
        else:
            self._shown.update(chart)


def _evaluated(step: int, history: History) -> bool:
    return history.evaluation is not None and history.evaluation.step == step


def _in_notebook() -> bool:
    """Whether IPython runs this; it does not where nobody has imported it."""
    shell = sys.modules.get("IPython")
    return shell is not None and shell.get_ipython() is not None


def _draw(steps: Sequence[Row], scores: Sequence[Row], title: str) -> Any:
    """Losses of steps as a line; evaluations of the held-out set as points."""
    figure = figures.new(6.4, 3.2)
    axes = figure.add_subplot()
    figures.plain(axes)
    axes.grid(color=COLORS[7], alpha=0.35, linewidth=0.6)
    points = {"color": COLORS[5], "marker": "o", "linestyle": ":"}
    for rows, name, label, line in (
        (steps, "loss", "training", {"color": COLORS[4], "linewidth": 1.4}),
        (scores, "nats_per_token", "held out", points),
    ):
        found = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
        if found:
            last = f"{label}: {found[-1][1]:.3f}"
            axes.plot(*zip(*found, strict=True), label=last, **line)
    axes.set_xlabel("step", color=INK)
    axes.set_ylabel("loss, nats/token", color=INK)
    axes.set_title(title, color=INK, fontsize=10)
    if axes.lines:
        axes.legend(facecolor=figures.PAPER, edgecolor="none", labelcolor=INK)
    return figure
