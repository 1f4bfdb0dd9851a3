"""The event that saves checkpoints."""

from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.errors import Diverged
from jaxpar.partition import cluster
from jaxpar.run.divergence import what_is_saved
from jaxpar.train.actions import Action
from jaxpar.train.events import Decide
from jaxpar.train.loop import History
from jaxpar.train.nonfinite import make_finder
from jaxpar.train.state import TrainState


class Save:
    """Saves on schedule, where the run is stopped, at the best evaluation, and last."""

    def __init__(self, checkpoints: Checkpoints, decide: Decide, *, every: int):
        self._checkpoints, self._decide, self._every = checkpoints, decide, every
        self._first_nonfinite = make_finder()
        self.saved = cluster.broadcast(checkpoints.newest())

    def due(self, step: int, history: History) -> bool:
        """Whether a checkpoint of this step is wanted, and there is none yet."""
        if step == self.saved:
            return False
        on_schedule = step > 0 and step % self._every == 0
        asked = history.stop is not None or history.best_at == step
        return on_schedule or asked or step == history.num_steps

    def run(self, step: int, state: TrainState, history: History) -> Action:
        """Begins to save; the loop goes on while the files are written.

        Raises:
          Diverged: a parameter or a moment is not finite; nothing is saved.
        """
        if path := self._first_nonfinite((state.params, state.opt_state)):
            raise Diverged(
                f"Step {step} is not saved: {_described(path)} is not finite. "
                f"{what_is_saved(self._checkpoints)} Lower optim.peak_lr or clip "
                "gradients more."
            )
        self.saved = step
        self._checkpoints.save(
            step, state, memory=self._decide.memory, best=history.best_at == step
        )
        return None


def _described(path: str) -> str:
    """What a leaf of (params, opt_state) is, by its path in that pair."""
    which, _, rest = path.partition("/")
    return f"parameter {rest}" if which == "0" else f"the optimizer's {rest}"
