"""Entry point: how well a run predicts its held-out data, or any source."""

import contextlib
import sys
from pathlib import Path

import jax

from jaxpar.checkpoint.run import RunDir
from jaxpar.data import source as sources
from jaxpar.data import tokenizer
from jaxpar.data.pipeline import eval_batches
from jaxpar.partition import devices as machine
from jaxpar.partition.layout import Layout, Placed
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
    home = RunDir(run_path)
    run = home.open(*classes)
    step = home.pick(step, rule=run.stop)
    placed = place(run.layout, layout, devices)
    tokens = tokenizer.load(home.tokenizer_dir)
    if source is None:
        windows = run.data.prepare(tokens).heldout
    else:
        windows = sources.score(source, tokens, run.data.seq_len)
    recipe = run.recipe()
    recipe.abstract(placed.layout)
    checkpoints = home.checkpoints(read_only=True)
    params = checkpoints.restore_params(step, recipe.target(placed).params)
    checkpoints.close()
    # The last batch is filled up with rows of weight 0, so any layout serves.
    ways = placed.layout.batch_divisor
    batches = eval_batches(
        windows,
        run.objective.row,
        batch_size=-(-run.data.batch_size // ways) * ways,
        placed=placed,
    )
    totals = evaluate(make_eval_step(recipe, placed), params, batches)
    return {
        "step": step,
        "tokens": round(totals["weight"]),
        "bytes": windows.n_bytes,
        **summary(totals, windows.n_bytes),
        "xz_nats_per_byte": windows.xz_nats_per_byte,
    }


def place(own: Layout, asked: Layout | str | None, devices: int | None) -> Placed:
    """Where to compute: as asked, else as the run did if that fits, else on one."""
    if asked is not None:
        layout = Layout.parse(asked) if isinstance(asked, str) else asked
        return layout.on(machine.choose(layout, devices, may_idle=True))
    if devices is not None:
        # Fails once a backend runs; then what is visible is what there is.
        with contextlib.suppress(RuntimeError):
            machine.simulate(devices)
    seen = jax.devices()
    if len(seen) == own.n_devices:
        return own.on(seen)
    if len(seen) > 1:
        print(
            f"On one of {len(seen)} devices; --layout data={len(seen)} uses all.",
            file=sys.stderr,
        )
    return Layout.parse("data=1").on(seen[:1])
