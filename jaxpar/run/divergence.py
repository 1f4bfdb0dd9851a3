"""What a run does about values that are not finite, and what it says is saved."""

from collections.abc import Callable

from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.checkpoint.newest_saved import what_is_saved
from jaxpar.experiment import Experiment
from jaxpar.train.nonfinite import NonfiniteSteps, value_names


def nonfinite_steps(
    experiment: Experiment,
    checkpoints: Checkpoints,
    *,
    windows_of: Callable[[int], list[int]],
) -> NonfiniteSteps:
    """The experiment's policy; windows_of: the windows of a step's batch."""
    return NonfiniteSteps(
        value_names(experiment.recipe().anatomy.shapes),
        policy=experiment.on_nonfinite,
        max_skipped=experiment.max_skipped,
        windows_of=windows_of,
        saved=lambda: what_is_saved(checkpoints),
    )
