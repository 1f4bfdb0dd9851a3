"""Writing the manifest of each step, once Orbax has committed it."""

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path

from jaxpar.checkpoint import failed_saves
from jaxpar.guard import manifest
from jaxpar.partition import cluster
from jaxpar.tables import for_messages

POLL_SECONDS = 0.05


class ManifestWriter:
    """Writes the manifest of the step that is being saved, when that is done.

    One process does it on a thread, beside the training. Several do it together, when
    they wait for the save to end: before the next one, and at the end.

    is_saving: whether Orbax is still at work. on_commit: called with the step.
    """

    def __init__(
        self,
        directory: Path,
        is_saving: Callable[[], bool],
        on_commit: Callable[[int], None],
    ):
        self._directory, self._is_saving = directory, is_saving
        self._on_commit = on_commit
        self.step: int | None = None
        """The step whose save has begun, and was not waited for yet."""
        self._thread: threading.Thread | None = None
        self._abandoned, self._failed = threading.Event(), threading.Event()

    @property
    def failed(self) -> bool:
        """Whether Orbax has ended the save without a step; one process only knows."""
        return self._failed.is_set()

    def begin(self, step: int) -> None:
        """Expects the manifest of a step, whose save has begun."""
        self.step = step
        self._abandoned.clear()
        self._failed.clear()
        if cluster.count() == 1:
            self._thread = threading.Thread(
                target=self._write_when_saved, args=(step,), daemon=True
            )
            self._thread.start()

    def finish(self) -> None:
        """Returns once the manifest is written; to be called when the save is done."""
        step, self.step = self.step, None
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        elif step is not None:
            self._write(step)

    def abandon(self) -> None:
        """Expects no manifest any more, since the save failed."""
        self._abandoned.set()
        self.step = None
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._failed.clear()

    def _write_when_saved(self, step: int) -> None:
        while self._is_saving():
            if self._abandoned.wait(POLL_SECONDS):
                return
        if (self._directory / str(step)).is_dir():
            self._write(step)
        else:
            failed_saves.remove_unfinished(self._directory)
            self._failed.set()

    def _write(self, step: int) -> None:
        folder = self._directory / str(step)
        if not cluster.broadcast(folder.is_dir()):
            return
        try:
            manifest.write(folder)
        except OSError as error:
            # The step is whole without it; a disk that is full fails the next save.
            print(
                f"{folder}: its manifest could not be written ({error}), so its "
                "content cannot be verified, and --strict refuses it.",
                file=for_messages(),
            )
        with contextlib.suppress(OSError):  # The same disk may be full.
            if cluster.is_first():
                self._on_commit(step)
