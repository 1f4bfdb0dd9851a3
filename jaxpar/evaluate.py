"""Entry point: how well a run predicts its held-out data, or any source."""

from pathlib import Path

from jaxpar.checkpoint.opened import open_run
from jaxpar.data import source as sources
from jaxpar.data.pipeline import eval_batches
from jaxpar.partition import cluster
from jaxpar.partition.layout import Layout
from jaxpar.train.evaluate import evaluate, summary
from jaxpar.train.step import make_eval_step


def main(
    run_path: str | Path,
    *,
    step: int | str | None = None,
    source: str | None = None,
    devices: int | None = None,
    layout: Layout | str | None = None,
    classes: tuple[type, ...] = (),
) -> dict:
    """Scores a run's model: the step, counts, nats per token and byte, and xz's.

    Nats per token are over tokens of weight above 0: of a fine-tune, the answer loss.

    step: a number, "best" or "newest"; best where the run has a stopping rule, else
    newest. source: scores all of this source instead of the held-out data. layout: the
    run's own where exactly so many devices are visible, else one device. classes: those
    that config.json names and jaxpar does not ship.
    """
    opened = open_run(
        run_path, step=step, layout=layout, devices=devices, classes=classes
    )
    run, placed, tokens = opened.experiment, opened.placed, opened.tokenizer
    if source is None:
        windows = cluster.in_turn(lambda: run.data.prepare(tokens)).heldout
    else:
        windows = cluster.in_turn(
            lambda: sources.score(source, tokens, run.data.seq_len)
        )
    # The last batch is filled up with rows of weight 0, so any layout serves.
    ways = placed.layout.batch_divisor
    batches = eval_batches(
        windows,
        run.objective.row,
        batch_size=-(-run.data.batch_size // ways) * ways,
        placed=placed,
    )
    totals = evaluate(make_eval_step(opened.recipe, placed), opened.params, batches)
    return {
        "step": opened.step,
        "tokens": round(totals["weight"]),
        "bytes": windows.n_bytes,
        **summary(totals, windows.n_bytes),
        "xz_nats_per_byte": windows.xz_nats_per_byte,
    }
