"""Orbax's manager of a directory of steps, as jaxpar's checkpoints need it."""

import contextlib
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jaxpar.checkpoint import failed_saves, library_warnings
from jaxpar.checkpoint.step_directories import MEMORY, PARAMS, REST

COUNTS = "orbax.checkpoint._src.serialization.tensorstore_utils"
COUNT = "get_tensorstore_raw_bytes"
BEFORE = 0.0
"""The rank of a step that was not the best when it was saved."""


def open_manager(
    directory: Path, *, keep: int, read_only: bool, marked: Callable[[], int | None]
) -> ocp.CheckpointManager:
    """Opens a directory; keep, marked: as of NewestAndBest."""
    library_warnings.shorten()
    failed_saves.hide_raised_errors()
    _stop_leak()
    return ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            preservation_policy=NewestAndBest(keep, marked),
            best_fn=rank,
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
            if info.step == marked or (info.metrics and rank(info.metrics) > BEFORE)
        ]
        kept = newest | set(best[-1:])
        return [info.metrics is None or info.step in kept for info in checkpoints]


def rank(metrics: dict[str, Any]) -> float:
    """Orders steps so that the one that was the best last has the highest rank."""
    return metrics["rank"]


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


def rest_of(state: Any) -> dict[str, Any]:
    """What a training state has besides parameters."""
    return {
        "step": state.step,
        "opt_state": state.opt_state,
        "decay_from": state.decay_from,
    }
