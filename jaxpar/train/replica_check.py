"""The event that compares the copies of a state on several devices."""

from jaxpar.errors import ReplicasDiffer
from jaxpar.guard import phases, replicas
from jaxpar.train.actions import Action
from jaxpar.train.loop import History
from jaxpar.train.state import TrainState


class CheckReplicas:
    """Compares all copies on schedule; `require_equal` does so before a save."""

    def __init__(self, *, every: int):
        """every: steps between two checks; 0 compares nothing, not even at a save."""
        self._every = every
        self._checked: int | None = None

    def due(self, step: int, history: History) -> bool:
        """On schedule."""
        return self._every > 0 and step > 0 and step % self._every == 0

    def run(self, step: int, state: TrainState, history: History) -> Action:
        """Compares the copies of the state's arrays; every process calls it.

        Raises:
          ReplicasDiffer: see require_equal.
        """
        with history.untimed():
            self.require_equal(step, state)
        return None

    def require_equal(self, step: int, state: TrainState) -> None:
        """Refuses a state whose copies differ; a step is looked at once.

        Raises:
          ReplicasDiffer: some are not bit-equal; names the arrays and the devices.
        """
        if not self._every or step == self._checked:
            return
        with phases.doing("save"):
            found = replicas.find_differences(state)
        if found:
            raise ReplicasDiffer(
                f"At step {step} {replicas.describe(found)}, so it is not saved. These "
                "are copies of one array, so a device or its memory is at fault. "
                "Start the same command again: it goes on from the newest checkpoint, "
                "whose copies were equal. Take the device out if it is named again."
            )
        self._checked = step
