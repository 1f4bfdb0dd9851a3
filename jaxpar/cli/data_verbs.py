"""The verbs that look at an experiment's data alone: data prepare and data show."""

import sys
from typing import Any

from jaxpar.cli import options
from jaxpar.cli.flags import classes_in, split_first, with_flags
from jaxpar.cli.printing import print_items, print_report


def prepare(args: list[str]) -> None:
    """Tokenises an experiment's data and writes it down as files of tokens."""
    asked, classes = _asked(args, "jaxpar data prepare")
    from jaxpar.data.prepare import in_words
    from jaxpar.look.show_data import prepared_data

    # The one verb that may ask a network.
    asked.experiment.data.fetch()
    found = prepared_data(asked.experiment, classes=classes, progress=not asked.json)
    print(in_words(found.description), file=sys.stderr)
    print_items(found.description, asked.json)


def show(args: list[str]) -> None:
    """Prints what an experiment's data holds, and windows of it as tokens."""
    asked, classes = _asked(args, "jaxpar data show")
    from jaxpar.look.show_data import show_data

    progress = not asked.json
    shown = show_data(asked.experiment, classes=classes, progress=progress)
    print_report(shown, asked.json)


def _asked(args: list[str], prog: str) -> tuple[Any, tuple[type, ...]]:
    """The options with the experiment, and the classes that --import names."""
    file, rest = split_first(args, options.Look, prog=prog, what="EXPERIMENT")
    from jaxpar.experiment import Experiment

    asked = with_flags(options.Look, rest, prog, file, Experiment)
    return asked, classes_in(asked.imports)
