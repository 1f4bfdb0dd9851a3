"""The verbs that train: pretrain and finetune."""

from pathlib import Path

from jaxpar.cli import options
from jaxpar.cli.begin import begun
from jaxpar.cli.flags import classes_in, events_of, split_first, with_flags


def pretrain(args: list[str]) -> int:
    """Trains from random weights, or resumes the same run."""
    prog = "jaxpar pretrain"
    file, rest = split_first(args, options.Train, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Pretrain

    asked = with_flags(options.Train, rest, prog, file, Pretrain)
    from jaxpar import pretrain

    with begun(asked):
        return pretrain.main(
            asked.experiment,
            source_file=Path(file),
            run_dir=asked.run_dir,
            devices=asked.devices,
            check=asked.as_check(),
            events=events_of(file),
        )


def finetune(args: list[str]) -> int:
    """Trains from another run's checkpoint, or resumes the same run."""
    prog = "jaxpar finetune"
    file, rest = split_first(args, options.FinetuneRun, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Finetune

    asked = with_flags(options.FinetuneRun, rest, prog, file, Finetune)
    from jaxpar import finetune

    with begun(asked):
        return finetune.main(
            asked.experiment,
            source_file=Path(file),
            run_dir=asked.run_dir,
            devices=asked.devices,
            step=asked.chosen_step(),
            classes=classes_in(asked.imports),
            imports=asked.imports,
            check=asked.as_check(),
            events=events_of(file),
        )
