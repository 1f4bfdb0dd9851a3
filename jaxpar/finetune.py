"""Entry point: training on from another run's checkpoint, or resuming that."""

import dataclasses
from pathlib import Path
from typing import Any

from jaxpar.checkpoint.run import RunDir, default_dir
from jaxpar.checkpoint.session import agree, held, refuse_misfits, report, train
from jaxpar.checkpoint.transfer import adopt
from jaxpar.config import fingerprint
from jaxpar.data import tokenizer
from jaxpar.experiment import Finetune, FromSource
from jaxpar.partition import cluster
from jaxpar.partition import devices as machine
from jaxpar.partition.layout import Placed
from jaxpar.train.state import TrainState, create, fresh

STOPPED_ON_REQUEST = 75


def main(
    run: Finetune,
    *,
    run_dir: str | Path | None = None,
    devices: int | None = None,
    stem: str = "experiment",
    experiment: Path | None = None,
    step: int | str | None = None,
    classes: tuple[type, ...] = (),
) -> int:
    """Fine-tunes to the end, or on from where the run was left; the exit status.

    step: the source's checkpoint; best where that run has a stopping rule, else newest.
    classes: those that the source's config.json names and jaxpar does not ship.
    devices, experiment: as in jaxpar.pretrain.
    """
    stem = experiment.stem if experiment else stem
    source = RunDir(run.start_from)
    base = source.open(*classes)
    if isinstance(run.model, FromSource):
        run = dataclasses.replace(run, model=base.model)
    # Everything that can be refused is refused before data is read.
    placed = run.layout.on(machine.choose(run.layout, devices))
    step = cluster.agreed(source.pick(step, rule=base.stop))
    origin = f"{fingerprint(base)}@{step}"
    home = RunDir(run_dir or default_dir(stem, run, start_from=origin))
    agree(run, home)
    refuse_misfits(run)
    run.recipe().abstract(run.layout)
    tokens = tokenizer.load(source.tokenizer_dir)
    prepared = cluster.in_turn(lambda: run.data.prepare(tokens))
    refuse_misfits(run, prepared)
    with held(run, home, prepared, source=experiment, start_from=origin):
        # Its own checkpoint first, then start_from, then nothing else.
        ended = train(
            run, home, prepared, placed, lambda: start_from(run, base, placed, step)
        )
    report(ended, home, prepared.heldout.xz_nats_per_byte)
    if ended.interrupted:
        cluster.tell("The same command goes on from there.")
        return STOPPED_ON_REQUEST
    cluster.tell(
        "Next:\n"
        f"  jaxpar evaluate {home.path}\n"
        f'  jaxpar generate {home.path} --prompt "..."'
    )
    return 0


def start_from(run: Finetune, base: Any, placed: Placed, step: int) -> TrainState:
    """Step 0, a fresh optimizer, and the parameters that another run learned."""
    recipe = run.recipe()
    shapes = dataclasses.replace(
        recipe, model=base.model, precision=base.precision
    ).target(placed)
    with_source = RunDir(run.start_from).checkpoints(read_only=True)
    pretrained = with_source.restore_params(step, shapes.params)
    with_source.close()
    ours = create(recipe, placed, seed=run.seed).params
    return fresh(recipe, placed, adopt(ours, pretrained, keep_fresh=run.keep_fresh))
