"""Checkpoints of a training state, written and read by Orbax."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxpar.checkpoint import failed_saves, orbax_manager, step_directories
from jaxpar.checkpoint.best_mark import BestMark
from jaxpar.checkpoint.manifest_writer import ManifestWriter
from jaxpar.checkpoint.orbax_manager import BEFORE, rest_of
from jaxpar.checkpoint.step_directories import MEMORY, PARAMS, REST
from jaxpar.checkpoint.upgrades import FORMAT, upgraded
from jaxpar.errors import NoUsableCheckpoint, SaveFailed, UserError
from jaxpar.partition import cluster

BOUND = "bound"
DESCRIPTIONS = {PARAMS: "parameters", REST: "optimizer state"}


class Checkpoints:
    """The checkpoints of one run, in a directory with a subdirectory for each step.

    A checkpoint has three items: the parameters, the rest of the training state, and
    a JSON object with what later decisions remember (stopping rule, loss spikes). The
    newest `keep` are kept, and the best one, whatever its age. The caller of `save`
    decides which is best; Orbax would rank a NaN above a number. A manifest follows
    each step once it is committed: `jaxpar.guard.manifest`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int = 2,
        read_only: bool = False,
        on_commit: Callable[[int], None] = lambda step: None,
        bound: Mapping[str, str] | None = None,
    ):
        """Opens the checkpoints.

        on_commit: called by process 0 for each saved step. bound: hashes of what
        belongs to every step that is saved, such as the tokenizer.
        """
        self._bound = dict(bound or {})
        self._n_bytes = 0
        self.directory = directory.absolute()
        if read_only and not self.directory.is_dir():
            raise UserError(f"{self.directory} holds no checkpoints.")
        if not read_only:
            with cluster.synchronized():
                if cluster.is_first():
                    step_directories.prepare(self.directory)
        self._mark = BestMark(self.directory, shared=not read_only)
        self._open = functools.partial(
            orbax_manager.open_manager,
            self.directory,
            keep=keep,
            read_only=read_only,
            marked=lambda: self._mark.step,
        )
        self._manager = self._open()
        self._manifests = ManifestWriter(
            self.directory, lambda: self._manager.is_saving_in_progress(), on_commit
        )

    def save(
        self, step: int, state: Any, *, memory: dict[str, Any], best: bool = False
    ) -> None:
        """Begins to save a step; returns once the arrays have been copied.

        state: a jaxpar.train.state.TrainState. memory: what later decisions have to
        remember, as JSON. best: whether this is the best checkpoint so far.

        Raises:
          SaveFailed: this save could not begin, or an earlier one failed.
        """
        self.wait()
        item = {**memory, "is_best": best, "format": FORMAT, BOUND: self._bound}
        # Above that of others even at step 0: a fine-tune may be best where it began.
        rank = float(step + 1) if best else BEFORE
        self._n_bytes = failed_saves.state_bytes(state)
        try:
            self._mark.forget_unless_of(self._manager.all_steps())
            saved = self._manager.save(
                step, args=orbax_manager.to_save(state, item), metrics={"rank": rank}
            )
        except Exception as error:  # The storage library raises classes of its own.
            raise self._failed(error, step) from error
        if not saved:
            raise SaveFailed(
                f"{self.directory}: step {step} was not saved; the newest there is "
                f"{self._manager.latest_step()}."
            )
        self._manifests.begin(step)

    @property
    def has_failed(self) -> bool:
        """Whether a save is known to have failed, without waiting; `wait` raises it."""
        return self._manifests.failed

    def wait(self) -> None:
        """Blocks until every save is on disk.

        Raises:
          SaveFailed: one failed; what was left of it is removed.
        """
        step = self._manifests.step
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # The storage library raises classes of its own.
            raise self._failed(error, step) from error
        except BaseException:
            self._manifests.abandon()
            raise
        self._manifests.finish()

    def mark_best(self, step: int) -> None:
        """Marks a step as the best that was saved before that was known.

        Raises:
          UserError: there is no checkpoint of this step.
          SaveFailed: the mark cannot be written.
        """
        self._require(step)
        try:
            with cluster.synchronized():
                self._mark.put(step)
        except OSError as error:
            raise self._explained(error, f"the mark of step {step}") from error

    def close(self) -> None:
        """Waits for every save, then releases Orbax's threads.

        Raises:
          SaveFailed: a save failed.
        """
        if cluster.count() > 1:
            # Another process may have failed, and would not take its share.
            self._manifests.abandon()
        try:
            self.wait()
        finally:
            self._manager.close()

    def steps(self) -> list[int]:
        """The steps with a complete checkpoint, ascending.

        Raises:
          NoUsableCheckpoint: there are steps, and none of them is complete.
        """
        steps = self._manager.all_steps()
        complete = [s for s in steps if (self.directory / str(s) / PARAMS).is_dir()]
        damaged = [] if complete else step_directories.incomplete(self.directory)
        if damaged:
            raise NoUsableCheckpoint(
                f"{self.directory} has the steps {damaged}, and none is whole: "
                f"{PARAMS}/ is missing. Copy one again, or start anew with another "
                "--run-dir."
            )
        return sorted(complete)

    def newest(self) -> int | None:
        """The last step with a checkpoint; None where there is none."""
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The last of the steps that `marked_best` lists; None where there is none."""
        return max(self.marked_best(), default=None)

    def marked_best(self) -> list[int]:
        """The steps that were the best when they were saved or marked, ascending."""
        return [
            step
            for step in self.steps()
            if step == self._mark.step
            or step_directories.is_marked_best(self.directory / str(step))
        ]

    def memory(self, step: int) -> dict[str, Any]:
        """What the stopping rule and the spikes' policy remembered at a step.

        Raises:
          UserError: there is no checkpoint of this step.
          NoUsableCheckpoint: it is damaged, or of a newer format.
        """
        item = self._item(step)
        return {k: item[k] for k in item if k not in ("is_best", BOUND)}

    def bound(self, step: int) -> dict[str, str]:
        """The hashes that a step was saved with; none in runs of older versions.

        Raises the errors that `memory` raises.
        """
        return self._item(step).get(BOUND) or {}

    def restore(self, step: int, target: Any) -> tuple[Any, dict[str, Any]]:
        """The training state of a step, and what `memory` returns.

        target: a TrainState of jax.ShapeDtypeStruct, whose shardings say where each
        array goes.

        Raises:
          UserError: there is no such step, or its shapes or types are not the target's.
          NoUsableCheckpoint: it is damaged, or of a newer format.
        """
        memory = self.memory(step)  # First, since it checks the format.
        self._require_same(step, PARAMS, target.params)
        self._require_same(step, REST, rest_of(target))
        items = self._read(
            step,
            {
                PARAMS: ocp.args.StandardRestore(target.params),
                REST: ocp.args.StandardRestore(rest_of(target)),
            },
        )
        state = dataclasses.replace(target, params=items[PARAMS], **items[REST])
        return state, memory

    def restore_params(self, step: int, target: Any) -> Any:
        """Only the parameters of a step: a third of the bytes that Adam's state has.

        target: the parameters as jax.ShapeDtypeStruct with shardings. Raises the
        errors that `restore` raises.
        """
        self.memory(step)  # Checks the format.
        self._require_same(step, PARAMS, target)
        return self._read(step, {PARAMS: ocp.args.StandardRestore(target)})[PARAMS]

    def param_shapes(self, step: int) -> dict[str, Any]:
        """Shapes and types of the stored parameters, without reading them."""
        return self._shapes(step, PARAMS)

    def _item(self, step: int) -> dict[str, Any]:
        """The JSON item of a step, in today's format."""
        stored = self._read(step, {MEMORY: ocp.args.JsonRestore()})[MEMORY]
        with orbax_manager.reading(self.directory / str(step), self.steps):
            return upgraded(stored, self.directory / str(step))

    def _shapes(self, step: int, item: str) -> dict[str, Any]:
        with orbax_manager.reading(self.directory / str(step), self.steps):
            metadata = self._manager.item_metadata(step)[item]
            tree = dict(getattr(metadata, "tree", metadata))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), tree
        )

    def _read(self, step: int, items: dict[str, Any]) -> Any:
        """Items of a step, each restored as its Orbax arguments say."""
        self._require(step)
        with orbax_manager.reading(self.directory / str(step), self.steps):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    def _require(self, step: int) -> None:
        if step not in self.steps():
            raise UserError(
                f"{self.directory} has no checkpoint of step {step}; there are "
                f"{self.steps()}."
            )

    def _failed(self, error: Exception, step: int | None) -> SaveFailed:
        """Cleans up after a save that failed; its error as one line."""
        self._manifests.abandon()
        if cluster.is_first():
            failed_saves.remove_unfinished(self.directory)
        # Orbax's manager has forgotten the steps that it would have deleted, and may
        # raise this error again. To open another one takes all processes.
        if cluster.count() == 1:
            with contextlib.suppress(Exception):  # It is being reported.
                self._manager.close()
            self._manager = self._open()
        else:
            self._manager.reload()
        what = "a checkpoint" if step is None else f"step {step}"
        return self._explained(error, what)

    def _explained(self, error: Exception, what: str) -> SaveFailed:
        facts = {"newest": self._manager.latest_step(), "n_bytes": self._n_bytes}
        return failed_saves.explained(error, self.directory, what, **facts)

    def _require_same(self, step: int, item: str, target: Any) -> None:
        """Refuses other shapes and types; Orbax would cast types without a warning."""
        stored = self._shapes(step, item)
        if found := orbax_manager.differences(stored, target):
            raise UserError(
                f"{self.directory / str(step)} holds other {DESCRIPTIONS[item]}: "
                f"{found}"
            )
