"""Entry point: training a model from random weights, or resuming that."""

from pathlib import Path

from jaxpar.checkpoint.run import RunDir, default_dir
from jaxpar.checkpoint.session import agree, held, refuse_misfits, report, train
from jaxpar.experiment import Pretrain
from jaxpar.partition import cluster
from jaxpar.partition import devices as machine
from jaxpar.train.state import create

STOPPED_ON_REQUEST = 75


def main(
    run: Pretrain,
    *,
    run_dir: str | Path | None = None,
    devices: int | None = None,
    stem: str = "experiment",
    experiment: Path | None = None,
) -> int:
    """Trains to the end, or on from where the run was left; returns the exit status.

    devices: CPU devices to simulate. experiment: the file that defines the run; its
    stem names the default directory, and its text is kept there as a receipt.
    """
    stem = experiment.stem if experiment else stem
    home = RunDir(run_dir or default_dir(stem, run))
    agree(run, home)
    # Everything that can be refused is refused before data is read.
    placed = run.layout.on(machine.choose(run.layout, devices))
    refuse_misfits(run)
    recipe = run.recipe()
    recipe.abstract(run.layout)
    prepared = cluster.in_turn(run.data.prepare)
    refuse_misfits(run, prepared)
    with held(run, home, prepared, source=experiment):
        ended = train(
            run, home, prepared, placed, lambda: create(recipe, placed, seed=run.seed)
        )
    report(ended, home, prepared.heldout.xz_nats_per_byte)
    if ended.interrupted:
        cluster.tell("The same command goes on from there.")
        return STOPPED_ON_REQUEST
    cluster.tell(
        "Next:\n"
        f"  jaxpar evaluate {home.path}\n"
        f'  jaxpar generate {home.path} --prompt "import "\n'
        "  jaxpar finetune experiments/quickstart_finetune.py --start-from "
        f"{home.path}"
    )
    return 0
