"""Entry point: trains a model from random weights, or resumes a training."""

from pathlib import Path

from jaxpar.checkpoint.verified import Check
from jaxpar.experiment import Pretrain
from jaxpar.partition.devices import choose_devices
from jaxpar.run.directory import RunDir, default_dir
from jaxpar.run.session import require_agreement
from jaxpar.run.training import train_run
from jaxpar.train.state import TrainState, create


def main(
    experiment: Pretrain,
    *,
    run_dir: str | Path | None = None,
    devices: int | None = None,
    stem: str = "experiment",
    source_file: Path | None = None,
    check: Check | None = None,
) -> int:
    """Trains to the end, or on from where the run was left; returns the exit status.

    devices: how many CPU devices to simulate. source_file: the file that defines the
    experiment; its stem names the default directory, and its text is kept there.
    check: how a checkpoint is verified before it is read; fully where nothing is said.
    """
    stem = source_file.stem if source_file else stem
    run = RunDir(run_dir or default_dir(stem, experiment))
    require_agreement(experiment, run)
    placed = experiment.layout.on(choose_devices(experiment.layout, devices))

    def begin(experiment: Pretrain) -> TrainState:
        return create(experiment.recipe(), placed, seed=experiment.seed)

    outcome = train_run(
        experiment,
        begin,
        run_dir=run,
        placed=placed,
        source_file=source_file,
        check=check,
    )
    commands = (
        f"  jaxpar evaluate {run.path}\n"
        f'  jaxpar generate {run.path} --prompt "import "\n'
        f"  jaxpar finetune experiments/quickstart_finetune.py --start-from {run.path}"
    )
    return outcome.report(run, next_commands=commands)
