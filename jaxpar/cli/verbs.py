"""The table of the verbs, each of which loads no more than it needs."""

from collections.abc import Callable
from typing import NamedTuple

from jaxpar.cli import data_verbs, experiment_verbs, run_verbs, training_verbs


class Verb(NamedTuple):
    """What a verb does with its arguments, and its line in `jaxpar --help`."""

    run: Callable[[list[str]], int | None]
    summary: str


VERBS: dict[str, Verb] = {
    "pretrain": Verb(
        training_verbs.pretrain, "train an experiment's model, or resume the same run"
    ),
    "finetune": Verb(training_verbs.finetune, "train on from another run's checkpoint"),
    "evaluate": Verb(
        run_verbs.evaluate, "loss and perplexity of a run on its data or any text"
    ),
    "generate": Verb(run_verbs.generate, "continue a prompt with a run's model"),
    "check": Verb(run_verbs.check, "verify every checkpoint of a run"),
    "show": Verb(
        experiment_verbs.show, "what each device would hold of an experiment's state"
    ),
    "verify": Verb(
        experiment_verbs.verify, "prove that a layout computes what one device does"
    ),
    "data prepare": Verb(
        data_verbs.prepare, "tokenise an experiment's data into files"
    ),
    "data show": Verb(data_verbs.show, "what an experiment's data holds, as tokens"),
}
