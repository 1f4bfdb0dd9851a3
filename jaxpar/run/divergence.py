"""What a run does about values that are not finite, and what it says is saved."""

from collections.abc import Callable

from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.checkpoint.newest_saved import what_is_saved
from jaxpar.data.order import Skipped, order
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


def windows_by_step(
    experiment: Experiment, n_windows: int, skipped: Skipped = ()
) -> Callable[[int], list[int]]:
    """A function from a step to the windows of its batch.

    n_windows, skipped: as `order` takes them.
    """
    rows = experiment.data.batch_size

    def windows_of(step: int) -> list[int]:
        # Step 1 is the first one, made of the batch of step 0.
        return order(experiment.seed, step - 1, rows, n_windows, skipped).tolist()

    return windows_of
