"""Entry point: fine-tunes from another run's checkpoint, or resumes a fine-tune."""

import contextlib
import dataclasses
from pathlib import Path

from jaxpar.checkpoint.transfer import adopt
from jaxpar.config import fingerprint
from jaxpar.data import tokenizer
from jaxpar.experiment import Experiment, Finetune
from jaxpar.partition import cluster
from jaxpar.partition.devices import choose_devices
from jaxpar.partition.layout import Placed
from jaxpar.run.directory import RunDir, Step, default_dir
from jaxpar.run.training import require_agreement, train_run
from jaxpar.train.state import TrainState, create, with_params


def main(
    experiment: Finetune,
    *,
    run_dir: str | Path | None = None,
    devices: int | None = None,
    stem: str = "experiment",
    source_file: Path | None = None,
    step: Step = None,
    classes: tuple[type, ...] = (),
) -> int:
    """Fine-tunes to the end, or on from where the run was left; the exit status.

    step: the source's checkpoint; best where that run has a stopping rule, else newest.
    classes: those that the source's config.json names and jaxpar does not ship.
    devices, source_file: as in jaxpar.pretrain.
    """
    stem = source_file.stem if source_file else stem
    source = RunDir(experiment.start_from)
    base = source.open(*classes)
    experiment = experiment.with_model_of(lambda: base)
    placed = experiment.layout.on(choose_devices(experiment.layout, devices))
    chosen = cluster.broadcast(source.choose_step(step, rule=base.stop))
    origin = f"{fingerprint(base)}@{chosen}"
    run = RunDir(run_dir or default_dir(stem, experiment, start_from=origin))
    require_agreement(experiment, run)

    def begin(experiment: Finetune) -> TrainState:
        return start_from(experiment, source, base, placed, chosen)

    outcome = train_run(
        experiment,
        begin,
        run_dir=run,
        placed=placed,
        source_file=source_file,
        tokenizer=tokenizer.load(source.tokenizer_dir),
        start_from=origin,
    )
    commands = (
        f'  jaxpar evaluate {run.path}\n  jaxpar generate {run.path} --prompt "..."'
    )
    return outcome.report(run, next_commands=commands)


def start_from(
    experiment: Finetune, source: RunDir, base: Experiment, placed: Placed, step: int
) -> TrainState:
    """Step 0, a fresh optimizer, and the parameters that another run learned."""
    recipe = experiment.recipe()
    theirs = dataclasses.replace(recipe, model=base.model, precision=base.precision)
    with contextlib.closing(source.checkpoints(read_only=True)) as checkpoints:
        learned = checkpoints.restore_params(step, theirs.target(placed).params)
    ours = create(recipe, placed, seed=experiment.seed).params
    params = adopt(ours, learned, keep_fresh=experiment.keep_fresh)
    return with_params(recipe, placed, params)
