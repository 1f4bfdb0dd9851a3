"""Orbax's manager of a directory of steps, as jaxpar's checkpoints need it."""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxpar.checkpoint import library_warnings
from jaxpar.checkpoint.step_directories import MEMORY, PARAMS, REST
from jaxpar.errors import JaxparError, NoUsableCheckpoint, one_line
from jaxpar.tree import path_of

COUNTS = "orbax.checkpoint._src.serialization.tensorstore_utils"
COUNT = "get_tensorstore_raw_bytes"
BEFORE = 0.0
"""The rank of a step that was not the best when it was saved; of those that were, the
last one has the highest."""


def open_manager(
    directory: Path, *, keep: int, read_only: bool, marked: Callable[[], int | None]
) -> ocp.CheckpointManager:
    """Opens a directory; keep, marked: as of NewestAndBest."""
    library_warnings.shorten()
    library_warnings.hide_raised_errors()
    _stop_leak()
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=NewestAndBest(keep, marked),
            best_fn=lambda metrics: metrics["rank"],
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


class NewestAndBest(checkpoint_managers.PreservationPolicy):
    """Orbax's policy of what is kept: the newest `keep` steps, and the newest best one.

    marked: the step that was found to be the best after it was saved, if any. A step
    without metrics is kept, since it is unknown whether it is the best.
    """

    def __init__(self, keep: int, marked: Callable[[], int | None]):
        self._keep, self._marked = max(keep, 1), marked

    def should_preserve(
        self,
        checkpoints: Sequence[checkpoint_managers.PolicyCheckpointInfo],
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        """Whether each is kept; they ascend."""
        marked = self._marked()
        newest = {info.step for info in checkpoints[-self._keep :]}
        best = [
            info.step
            for info in checkpoints
            if info.step == marked or (info.metrics and info.metrics["rank"] > BEFORE)
        ]
        kept = newest | set(best[-1:])
        return [info.metrics is None or info.step in kept for info in checkpoints]


def _stop_leak() -> None:
    """Replaces a count of bytes, for statistics of Orbax's own, that leaks memory.

    It asks tensorstore (0.1.86) for lists that are never freed: 50 KB for each save.
    Where another Orbax has no such count, nothing is replaced.
    """
    with contextlib.suppress(ImportError):
        counts = importlib.import_module(COUNTS)
        if COUNT in vars(counts):
            setattr(counts, COUNT, lambda *args, **kwargs: 0)


def to_save(state: Any, memory: dict[str, Any]) -> ocp.args.Composite:
    """The items of a step; state: a jaxpar.train.state.TrainState."""
    return ocp.args.Composite(
        **{
            PARAMS: ocp.args.StandardSave(state.params),
            REST: ocp.args.StandardSave(rest_of(state)),
            MEMORY: ocp.args.JsonSave(memory),
        }
    )


@contextlib.contextmanager
def reading(folder: Path, steps: Callable[[], list[int]]) -> Iterator[None]:
    """A block that reads a step, whose errors name it; steps: those that there are.

    Raises:
      NoUsableCheckpoint: the storage library failed, for whatever but lack of memory.
    """
    try:
        yield
    except JaxparError:
        raise
    except Exception as error:  # The storage library raises classes of its own.
        if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
            raise
        raise NoUsableCheckpoint(
            f"{folder} cannot be read ({one_line(error)[:250]}); there are {steps()}. "
            "Restore its files, or move it elsewhere to go on from another step."
        ) from error


def rest_of(state: Any) -> dict[str, Any]:
    """What a training state has besides parameters."""
    return {
        "step": state.step,
        "opt_state": state.opt_state,
        "decay_from": state.decay_from,
    }


def differences(stored: Any, wanted: Any) -> str:
    """The first few differences in shape or type between pytrees; "" where none is."""
    ours, theirs = _by_path(stored), _by_path(wanted)
    differences = [
        f"{path} {_describe(ours.get(path))} stored, "
        f"{_describe(theirs.get(path))} wanted"
        for path in sorted(ours.keys() | theirs.keys())
        if _describe(ours.get(path)) != _describe(theirs.get(path))
    ]
    return "; ".join(differences[:5]) + (" ..." if len(differences) > 5 else "")


def _by_path(tree: Any) -> dict[str, Any]:
    """The leaves of any pytree, each under its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(keys): leaf for keys, leaf in leaves}


def _describe(leaf: Any) -> str:
    return "nothing" if leaf is None else f"{tuple(leaf.shape)} {leaf.dtype}"
