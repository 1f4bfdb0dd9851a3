"""The event that saves checkpoints."""

import contextlib
from collections.abc import Callable, Iterator

from jaxpar.checkpoint.failed_saves import OnSaveError
from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.checkpoint.newest_saved import what_is_saved
from jaxpar.errors import Diverged, SaveFailed, one_line
from jaxpar.partition import cluster
from jaxpar.tables import for_messages
from jaxpar.train.actions import Action
from jaxpar.train.converge import Memory
from jaxpar.train.events import Decide
from jaxpar.train.loop import History
from jaxpar.train.nonfinite import make_finder
from jaxpar.train.state import TrainState

RETRY_NOTE = "This run goes on, and tries again at its next save."


class Save:
    """Saves on schedule, where the run is stopped, at the best evaluation, and last.

    also: what the checkpoint's memory has to hold besides the stopping rule's.
    to_natural: puts a state's layers into the order in which checkpoints hold them.
    require_equal: compares the copies of a state on several devices before it is saved.
    on_error: "stop" ends the run at a save that fails; "go_on" says so and tries again
    at the next one, but a failure of the run's last save is an error.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        decide: Decide,
        *,
        every: int,
        also: Callable[[], Memory] = dict,
        on_error: OnSaveError = "stop",
        to_natural: Callable[[TrainState], TrainState] = lambda state: state,
        require_equal: Callable[[int, TrainState], None] = lambda step, state: None,
    ):
        self._checkpoints, self._decide, self._every = checkpoints, decide, every
        self._also, self._require_equal = also, require_equal
        self._to_natural = to_natural
        self._first_nonfinite = make_finder()
        # The others wait in Orbax for a process whose save failed.
        self._goes_on = on_error == "go_on" and cluster.count() == 1
        self.saved = cluster.broadcast(checkpoints.newest())
        self._best = cluster.broadcast(checkpoints.best())

    def due(self, step: int, history: History) -> bool:
        """Whether to save or mark this step, or to report that a save has failed."""
        return self._checkpoints.has_failed or self._is_wanted(step, history)

    def run(self, step: int, state: TrainState, history: History) -> Action:
        """Begins to save; the loop goes on while the files are written.

        Raises:
          Diverged: a parameter or a moment is not finite; nothing is saved.
          SaveFailed: this save or the one before failed, and the run is to stop.
        """
        with history.untimed(), self._reporting(history, final=False):
            self._checkpoints.wait()
        if not self._is_wanted(step, history):
            return None
        final = _is_last(step, history)
        with history.untimed(), self._reporting(history, final=final):
            if step == self.saved:
                self._checkpoints.mark_best(step)
                self._best = step
            else:
                self._save(step, state, history)

    def _is_wanted(self, step: int, history: History) -> bool:
        is_best = history.best_at == step
        if step == self.saved:
            # A signal ended its evaluation, which was done again after the resume.
            return is_best and step != self._best
        on_schedule = step > 0 and step % self._every == 0
        return on_schedule or is_best or _is_last(step, history)

    def _save(self, step: int, state: TrainState, history: History) -> None:
        if path := self._first_nonfinite((state.params, state.opt_state)):
            raise Diverged(
                f"Step {step} is not saved: {_described(path)} is not finite. "
                f"{what_is_saved(self._checkpoints)} Lower optim.peak_lr or clip "
                "gradients more."
            )
        self._require_equal(step, state)
        is_best = history.best_at == step
        memory = {**self._decide.memory, **self._also()}
        state = self._to_natural(state)
        self._checkpoints.save(step, state, memory=memory, best=is_best)
        self.saved = step
        self._best = step if is_best else self._best

    @contextlib.contextmanager
    def _reporting(self, history: History, *, final: bool) -> Iterator[None]:
        """A block in which a save may fail; final: it is the last one of the run."""
        try:
            yield
        except SaveFailed as error:
            self.saved = None
            if final or not self._goes_on:
                raise
            with contextlib.suppress(OSError):  # stderr may be on the same full disk.
                print(f"{one_line(error)} {RETRY_NOTE}", file=for_messages())


def _is_last(step: int, history: History) -> bool:
    """Whether no other save follows that of this step."""
    stopped = history.stop is not None or history.interrupted
    return stopped or step == history.num_steps


def _described(path: str) -> str:
    """What a leaf of (params, opt_state) is, by its path in that pair."""
    which, _, rest = path.partition("/")
    return f"parameter {rest}" if which == "0" else f"the optimizer's {rest}"
