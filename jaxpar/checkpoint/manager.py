"""Checkpoints of a training state, written and read by Orbax."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxpar.checkpoint import shape_differences, step_directories
from jaxpar.checkpoint.manifest_writer import ManifestWriter
from jaxpar.checkpoint.step_directories import MEMORY, PARAMS, REST
from jaxpar.checkpoint.upgrades import FORMAT, upgraded
from jaxpar.errors import JaxparError, NoUsableCheckpoint, SaveFailed, UserError
from jaxpar.partition import cluster

BOUND = "bound"
DESCRIPTIONS = {PARAMS: "parameters", REST: "optimizer state"}


class Checkpoints:
    """The checkpoints of one run, in a directory with a subdirectory for each step.

    A checkpoint has three items: the parameters, the rest of the training state, and
    a JSON object with the memory of the stopping rule. The newest `keep` checkpoints
    are kept, and the best one, whatever its age. The caller of `save` decides which is
    best; Orbax would rank a NaN above a number. A manifest follows each step once it
    is committed: `jaxpar.guard.manifest`.
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
        self.directory = directory.absolute()
        if read_only and not self.directory.is_dir():
            raise UserError(f"{self.directory} holds no checkpoints.")
        if not read_only:
            with cluster.synchronized():
                if cluster.is_first():
                    step_directories.prepare(self.directory)
        # Orbax logs each call as a warning.
        logging.getLogger("absl").setLevel(logging.ERROR)
        policies = checkpoint_managers
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(n=max(keep, 1)),
                        policies.BestN(n=1, get_metric_fn=_rank),
                    ]
                ),
                best_fn=_rank,
                # Else Orbax reads the metrics of all steps when it opens, and fails if
                # those of one are damaged.
                lightweight_initialize=read_only,
                read_only=read_only,
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                enable_async_checkpointing=True,
            ),
            item_handlers={
                PARAMS: ocp.StandardCheckpointHandler(),
                REST: ocp.StandardCheckpointHandler(),
                MEMORY: ocp.JsonCheckpointHandler(),
            },
        )
        self._manifests = ManifestWriter(
            self.directory, self._manager.is_saving_in_progress, on_commit
        )

    def save(
        self, step: int, state: Any, *, memory: dict[str, Any], best: bool = False
    ) -> None:
        """Begins to save a step; returns once the arrays have been copied.

        state: a jaxpar.train.state.TrainState. memory: what the stopping rule has to
        remember, as JSON. best: whether this is the best checkpoint so far.

        Raises:
          SaveFailed: Orbax refused this step.
          Exception: an earlier save failed; Orbax's own error.
        """
        self.wait()
        item = {**memory, "is_best": best, "format": FORMAT, BOUND: self._bound}
        # Above 0 even at step 0: a fine-tune may be best where it began.
        rank = float(step + 1) if best else 0.0
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    PARAMS: ocp.args.StandardSave(state.params),
                    REST: ocp.args.StandardSave(_rest(state)),
                    MEMORY: ocp.args.JsonSave(item),
                }
            ),
            metrics={"rank": rank},
        )
        if not saved:
            raise SaveFailed(
                f"{self.directory}: step {step} was not saved; the newest there is "
                f"{self._manager.latest_step()}."
            )
        self._manifests.begin(step)

    def wait(self) -> None:
        """Blocks until every save is on disk; raises the error of one that failed."""
        try:
            self._manager.wait_until_finished()
        except BaseException:
            self._manifests.abandon()
            raise
        self._manifests.finish()

    def close(self) -> None:
        """Waits for every save, then releases Orbax's threads."""
        if cluster.count() > 1:
            # Another process may have failed, and would not take its share.
            self._manifests.abandon()
        self.wait()
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
        """The last step that was the best when it was saved; None where none was."""
        return max(self.marked_best(), default=None)

    def marked_best(self) -> list[int]:
        """The steps that were the best when they were saved, ascending."""
        return [step for step in self.steps() if self._is_best(step)]

    def memory(self, step: int) -> dict[str, Any]:
        """What the stopping rule remembered at a step.

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
        """The training state of a step, and the stopping rule's memory.

        target: a TrainState of jax.ShapeDtypeStruct, whose shardings say where each
        array goes.

        Raises:
          UserError: there is no such step, or its shapes or types are not the target's.
          NoUsableCheckpoint: it is damaged, or of a newer format.
        """
        memory = self.memory(step)  # First, since it checks the format.
        self._require_same(step, PARAMS, target.params)
        self._require_same(step, REST, _rest(target))
        items = self._read(
            step,
            {
                PARAMS: ocp.args.StandardRestore(target.params),
                REST: ocp.args.StandardRestore(_rest(target)),
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
        with self._reports_damage(step):
            return upgraded(stored, self.directory / str(step))

    def _shapes(self, step: int, item: str) -> dict[str, Any]:
        with self._reports_damage(step):
            metadata = self._manager.item_metadata(step)[item]
            tree = dict(getattr(metadata, "tree", metadata))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), tree
        )

    def _read(self, step: int, items: dict[str, Any]) -> Any:
        """Items of a step, each restored as its Orbax arguments say."""
        if step not in self.steps():
            raise UserError(
                f"{self.directory} has no checkpoint of step {step}; there are "
                f"{self.steps()}."
            )
        with self._reports_damage(step):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    @contextlib.contextmanager
    def _reports_damage(self, step: int) -> Iterator[None]:
        """Turns the errors of reading into one line that names the damaged step."""
        try:
            yield
        except JaxparError:
            raise
        except Exception as error:  # The storage library raises classes of its own.
            if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
                raise
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise NoUsableCheckpoint(
                f"{self.directory / str(step)} cannot be read ({type(error).__name__}: "
                f"{first[:200]}); there are {self.steps()}. Restore its files, or move "
                "it elsewhere to go on from another step."
            ) from error

    def _require_same(self, step: int, item: str, target: Any) -> None:
        """Refuses other shapes and types; Orbax would cast types without a warning."""
        stored = self._shapes(step, item)
        if found := shape_differences.listed(stored, target):
            raise UserError(
                f"{self.directory / str(step)} holds other {DESCRIPTIONS[item]}: "
                f"{found}"
            )

    def _is_best(self, step: int) -> bool:
        path = self.directory / str(step) / MEMORY / "metadata"
        try:
            return bool(json.loads(path.read_text()).get("is_best"))
        except (OSError, ValueError, AttributeError):
            return False


def _rest(state: Any) -> dict[str, Any]:
    """What a training state has besides parameters."""
    return {
        "step": state.step,
        "opt_state": state.opt_state,
        "decay_from": state.decay_from,
    }


def _rank(metrics: dict[str, float]) -> float:
    return metrics["rank"]
