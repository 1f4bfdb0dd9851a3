"""The event that saves checkpoints."""

from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.partition import cluster
from jaxpar.train.actions import Action
from jaxpar.train.events import Decide
from jaxpar.train.loop import History
from jaxpar.train.state import TrainState


class Save:
    """Saves on schedule, where the run is stopped, at the best evaluation, and last."""

    def __init__(self, checkpoints: Checkpoints, decide: Decide, *, every: int):
        self._checkpoints, self._decide, self._every = checkpoints, decide, every
        self.saved = cluster.broadcast(checkpoints.newest())

    def due(self, step: int, history: History) -> bool:
        """Whether a checkpoint of this step is wanted, and there is none yet."""
        if step == self.saved:
            return False
        on_schedule = step > 0 and step % self._every == 0
        asked = history.stop is not None or history.best_at == step
        return on_schedule or asked or step == history.num_steps

    def run(self, step: int, state: TrainState, history: History) -> Action:
        """Begins to save; the loop goes on while the files are written."""
        self.saved = step
        self._checkpoints.save(
            step, state, memory=self._decide.memory, best=history.best_at == step
        )
        return None
