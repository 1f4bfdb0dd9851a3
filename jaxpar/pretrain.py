"""Entry point: trains a model from random weights, or resumes a training."""

from pathlib import Path

from jaxpar import cache
from jaxpar.checkpoint.verified import Check
from jaxpar.experiment import Pretrain
from jaxpar.partition.precision import in_its_types
from jaxpar.run.directory import RunDir, default_dir
from jaxpar.run.own_events import OwnEvents
from jaxpar.run.placing import place
from jaxpar.run.session import require_agreement
from jaxpar.run.training import train_run
from jaxpar.train.state import TrainState, create


@in_its_types
def main(
    experiment: Pretrain,
    *,
    run_dir: str | Path | None = None,
    devices: int | None = None,
    stem: str = "experiment",
    source_file: Path | None = None,
    check: Check | None = None,
    events: OwnEvents = (),
) -> int:
    """Trains to the end, or on from where the run was left; returns the exit status.

    devices: how many CPU devices to simulate. source_file: the file that defines the
    experiment; its stem names the default directory, and its text is kept there.
    check: how a checkpoint is verified before it is read; fully where nothing is said.
    events: of one's own, or functions that make one of the run (`Running`); they run
    between the stopping rule and the save, in every process.
    """
    cache.keep_programs()
    stem = source_file.stem if source_file else stem
    run = RunDir(run_dir or default_dir(stem, experiment))
    require_agreement(experiment, run)
    placed = place(experiment, devices)

    def begin(experiment: Pretrain) -> TrainState:
        return create(experiment.recipe(), placed, seed=experiment.seed)

    outcome = train_run(
        experiment,
        begin,
        run_dir=run,
        placed=placed,
        source_file=source_file,
        check=check,
        events=events,
    )
    return outcome.report(run)
