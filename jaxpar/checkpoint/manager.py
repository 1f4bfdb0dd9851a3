"""Orbax checkpoints of a training state, behind one thin class."""

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxpar.errors import NoUsableCheckpoint, SaveFailed, UserError
from jaxpar.partition import cluster
from jaxpar.tree import path_of

PARAMS, REST, MEMORY = "params", "rest", "memory"
CALLED = {PARAMS: "parameters", REST: "optimizer state"}


class Checkpoints:
    """The checkpoints of one run: parameters, the rest of the state, a rule's memory.

    The newest `keep` are kept, and the best, whatever its age. Which is best is
    decided by who saves; Orbax is only told, since it ranks a NaN above a number.
    """

    def __init__(self, directory: Path, *, keep: int = 2, read_only: bool = False):
        self.directory = Path(directory).absolute()
        if read_only and not self.directory.is_dir():
            raise UserError(f"{self.directory} holds no checkpoints.")
        if not read_only:
            with cluster.synchronized():
                if cluster.is_first():
                    _make_ready(self.directory)
        # Orbax tells on absl's log, at the level of a warning, what it was asked to do.
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

    def save(self, step: int, state: Any, *, memory: dict, best: bool = False) -> None:
        """Begins to save; returns once the device's arrays have been copied.

        Raises:
          RuntimeError: Orbax would not save this step, or failed at an earlier one.
        """
        rest = {
            "step": state.step,
            "opt_state": state.opt_state,
            "decay_from": state.decay_from,
        }
        # Above zero for step 0, too: a fine-tune's best may be where it began.
        rank = float(step + 1) if best else 0.0
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                **{
                    PARAMS: ocp.args.StandardSave(state.params),
                    REST: ocp.args.StandardSave(rest),
                    MEMORY: ocp.args.JsonSave({**memory, "is_best": best}),
                }
            ),
            metrics={"rank": rank},
        )
        if not saved:
            raise SaveFailed(
                f"{self.directory}: step {step} was not saved; the newest there is "
                f"{self._manager.latest_step()}."
            )

    def wait(self) -> None:
        """Blocks until every save is on disk; raises what went wrong with one."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go."""
        self.wait()
        self._manager.close()

    def steps(self) -> list[int]:
        """The steps that were saved whole, ascending.

        Raises:
          NoUsableCheckpoint: there are steps, and not one of them is whole.
        """
        found = self._manager.all_steps()
        whole = [s for s in found if (self.directory / str(s) / PARAMS).is_dir()]
        ruins = [] if whole else _ruins(self.directory)
        if ruins:
            raise NoUsableCheckpoint(
                f"{self.directory} has the steps {ruins}, and none is whole: {PARAMS}/ "
                "is missing. Copy one again, or start anew with another --run-dir."
            )
        return sorted(whole)

    def newest(self) -> int | None:
        return max(self.steps(), default=None)

    def best(self) -> int | None:
        """The newest step that was the best when it was saved."""
        return max((s for s in self.steps() if self._is_best(s)), default=None)

    def memory(self, step: int) -> dict:
        """What a stopping rule remembered at a step."""
        found = self._open(step, {MEMORY: ocp.args.JsonRestore()})[MEMORY]
        return {key: value for key, value in found.items() if key != "is_best"}

    def restore(self, step: int, target: Any) -> tuple[Any, dict]:
        """The state of a step, laid out as the target's shardings say; its memory.

        Raises:
          UserError: shapes or types other than the target's are stored.
          NoUsableCheckpoint: the step is damaged.
        """
        rest = {
            "step": target.step,
            "opt_state": target.opt_state,
            "decay_from": target.decay_from,
        }
        self._compare(step, PARAMS, target.params)
        self._compare(step, REST, rest)
        found = self._open(
            step,
            {
                PARAMS: ocp.args.StandardRestore(target.params),
                REST: ocp.args.StandardRestore(rest),
            },
        )
        state = dataclasses.replace(target, params=found[PARAMS], **found[REST])
        return state, self.memory(step)

    def restore_params(self, step: int, target: Any) -> Any:
        """The parameters alone, a third of what Adam's state weighs."""
        self._compare(step, PARAMS, target)
        return self._open(step, {PARAMS: ocp.args.StandardRestore(target)})[PARAMS]

    def param_shapes(self, step: int) -> dict:
        """Shapes and types of the stored parameters, without reading them."""
        return self._shapes(step, PARAMS)

    def _shapes(self, step: int, item: str) -> dict:
        with self._readable(step):
            found = self._manager.item_metadata(step)[item]
            tree = dict(getattr(found, "tree", found))
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), leaf.dtype), tree
        )

    def _open(self, step: int, items: dict) -> Any:
        if step not in self.steps():
            raise UserError(
                f"{self.directory} has no checkpoint of step {step}; there are "
                f"{self.steps()}."
            )
        with self._readable(step):
            return self._manager.restore(step, args=ocp.args.Composite(**items))

    @contextlib.contextmanager
    def _readable(self, step: int) -> Iterator[None]:
        """Says in one line which step is damaged, and what to do."""
        try:
            yield
        except (OSError, ValueError, KeyError, TypeError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise NoUsableCheckpoint(
                f"{self.directory / str(step)} cannot be read ({type(error).__name__}: "
                f"{first[:200]}); there are {self.steps()}, choose one with --step."
            ) from error

    def _compare(self, step: int, item: str, target: dict) -> None:
        """Refuses other types and shapes; Orbax would cast types in silence."""
        if step not in self.steps():
            return
        stored = _by_path(self._shapes(step, item))
        wanted = _by_path(target)
        wrong = [
            f"{path} {_describe(stored.get(path))} stored, {_describe(wanted.get(path))} wanted"
            for path in sorted(stored.keys() | wanted.keys())
            if _describe(stored.get(path)) != _describe(wanted.get(path))
        ]
        if wrong:
            raise UserError(
                f"{self.directory / str(step)} holds other {CALLED[item]}: "
                f"{'; '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}"
            )

    def _is_best(self, step: int) -> bool:
        path = self.directory / str(step) / MEMORY / "metadata"
        try:
            return bool(json.loads(path.read_text()).get("is_best"))
        except (OSError, ValueError):
            return False


def _make_ready(directory: Path) -> None:
    """Refuses what a writer would only stumble over, or lose steps by, later on.

    Orbax counts every directory with a number as a step: an empty one would refuse
    all earlier saves, and a damaged one takes the place of a whole one in `keep`. Only
    a newer one is refused: an older one is what a killed deletion leaves behind.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file; checkpoints need a directory.")
    for step in _numbers(directory):
        with contextlib.suppress(OSError):  # It is not empty.
            (directory / str(step)).rmdir()
    ruins = _ruins(directory)
    whole = set(_numbers(directory)) - set(ruins)
    newest = max(whole, default=None)
    newer = [step for step in ruins if newest is not None and step > newest]
    if newer:
        raise UserError(
            f"{directory} has the damaged steps {newer}, which lack {PARAMS}/; move "
            f"them elsewhere to go on from step {newest}."
        )


def _numbers(directory: Path) -> list[int]:
    """The directories that Orbax takes for steps."""
    return sorted(
        int(path.name)
        for path in directory.iterdir()
        if path.name.isdecimal() and path.is_dir() and not path.is_symlink()
    )


def _ruins(directory: Path) -> list[int]:
    """Steps that hold something, but no parameters; an empty directory is no step."""
    return [
        step
        for step in _numbers(directory)
        if any((directory / str(step)).iterdir())
        and not (directory / str(step) / PARAMS).is_dir()
    ]


def _rank(metrics: dict) -> float:
    return metrics["rank"]


def _by_path(tree: Any) -> dict[str, Any]:
    """The leaves of any pytree, each under its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(keys): leaf for keys, leaf in leaves}


def _describe(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{tuple(leaf.shape)} {leaf.dtype}"
