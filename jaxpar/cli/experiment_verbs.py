"""The verbs that look at an experiment, and train nothing: show and verify."""

from jaxpar.cli import options
from jaxpar.cli.begin import use_compile_cache
from jaxpar.cli.flags import classes_in, split_first, with_flags
from jaxpar.cli.printing import print_report


def show(args: list[str]) -> None:
    """Prints every parameter's axes, shape, and piece on each device."""
    prog = "jaxpar show"
    file, rest = split_first(args, options.Show, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Experiment
    from jaxpar.look import show

    asked = with_flags(options.Show, rest, prog, file, Experiment)
    classes = classes_in(asked.imports)
    table = show(asked.experiment, devices=asked.devices, classes=classes)
    if asked.plot:
        table.plot(asked.plot)
    if asked.plot_layout:
        from jaxpar.look import figures, parallelism

        data = asked.experiment.data
        figure = parallelism.draw(table, data.batch_size, data.seq_len)
        figures.written(figure, asked.plot_layout)
    print_report(table, asked.json)


def verify(args: list[str]) -> int:
    """Proves that an experiment's layout computes what one device does."""
    prog = "jaxpar verify"
    file, rest = split_first(args, options.Verify, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Experiment
    from jaxpar.verify.prove import verify

    asked = with_flags(options.Verify, rest, prog, file, Experiment)
    use_compile_cache(True)
    proof = verify(
        asked.experiment,
        full=asked.full,
        precision=asked.precision,
        devices=asked.devices,
        classes=classes_in(asked.imports),
    )
    print_report(proof, asked.json)
    return 0 if proof.passed else 1
