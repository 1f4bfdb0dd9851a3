"""Entry point: evaluates a run on its held-out data, or on any source."""

from pathlib import Path
from typing import Any

from jaxpar.checkpoint.verified import Check
from jaxpar.data.loader import eval_batches
from jaxpar.data.same_data import prepare_together, require_same_data
from jaxpar.data.source import score
from jaxpar.data.windows import Windows
from jaxpar.partition.fixed_order import exact_or_off
from jaxpar.partition.layout import Layout
from jaxpar.run.directory import Step
from jaxpar.run.opening import OpenRun, in_types_of_run, open_run
from jaxpar.sources.patterns import EXPERIMENT_FOLDER
from jaxpar.train.scoring import most_in_flight, per_token_and_byte, total_loss
from jaxpar.train.step import make_eval_step


@in_types_of_run
def main(
    run: str | Path,
    *,
    step: Step = None,
    source: str | None = None,
    text_field: str = "text",
    devices: int | None = None,
    layout: Layout | str | None = None,
    classes: tuple[type, ...] = (),
    check: Check | None = None,
) -> dict[str, Any]:
    """Scores a run's model: the step, counts, nats per token and byte, and xz's.

    Nats per token are over tokens of weight above 0: of a fine-tune, the answer loss.
    They are cross-entropy, whatever the objective; the mean of one's own stands beside.

    step: a number, "best" or "newest"; best where the run has a stopping rule, else
    newest. source: scores all of this source instead of the held-out data, from
    text_field of its records if they have fields. layout: the
    run's own where exactly so many devices are visible, else one device. devices: how
    many to simulate on a CPU. classes: those that config.json names and jaxpar does
    not ship. check: how the step is verified; fully where nothing is said.
    """
    opened = open_run(
        run, step=step, layout=layout, devices=devices, classes=classes, check=check
    )
    experiment, placed = opened.experiment, opened.placed
    windows = prepare_together(lambda: _windows(opened, source, text_field))
    # The last batch is filled up with rows of weight 0, so any layout serves.
    pieces = placed.layout.batch_divisor
    rows = -(-experiment.data.batch_size // pieces) * pieces
    batches = eval_batches(
        windows,
        experiment.objective.row,
        batch_size=rows,
        placed=placed,
        vocab_size=experiment.model.vocab_size,
    )
    parts = exact_or_off(placed.layout, experiment.exact, rows)
    eval_step = make_eval_step(opened.recipe, placed, exact=parts)
    totals = total_loss(
        eval_step, opened.params, batches, in_flight=most_in_flight(placed)
    )
    return {
        "step": opened.step,
        "windows": len(windows),
        "tokens": round(totals["weight"]),
        "bytes": windows.n_bytes,
        **per_token_and_byte(
            totals, windows.n_bytes, type(experiment.objective).__name__
        ),
        "xz_nats_per_byte": windows.xz_nats_per_byte,
    }


def _windows(opened: OpenRun, source: str | None, text_field: str) -> Windows:
    """The run's own held-out windows, or those of all of a source.

    Raises:
      UserError: the run has held other data out than what is there now.
    """
    data = opened.experiment.data
    if source is None:
        sessions = opened.run_dir.receipt.sessions()
        files = sessions[-1].get("files") if sessions else None
        if files and not EXPERIMENT_FOLDER.get():
            # Its data may lie beside the experiment's file, which is not loaded here.
            EXPERIMENT_FOLDER.set(Path(files[0]).parent)
        prepared = data.prepare(opened.tokenizer)
        if sessions:
            remedy = "restore it, or score another text with --data.source."
            path = opened.run_dir.path
            require_same_data(path, sessions[-1], prepared, remedy=remedy)
        return prepared.heldout
    return score(source, opened.tokenizer, data.seq_len, text_field=text_field)
