"""Going back to an earlier step of a run, because of a loss spike."""

import shutil
import sys
from pathlib import Path
from typing import Any

from jaxpar.checkpoint import step_directories, verified
from jaxpar.checkpoint.verified import Check
from jaxpar.errors import NoUsableCheckpoint
from jaxpar.partition import cluster
from jaxpar.run.directory import RunDir
from jaxpar.train.spikes import GoBack, Skipping

SUPERSEDED = "superseded"


def go_back(run_dir: RunDir, needed: GoBack, check: Check) -> None:
    """Leaves a run such that its newest step is the one to go back to.

    Every process calls it, while no checkpoints are open. Later steps are deleted; then
    the receipt says what is skipped. A run that is killed before that meets the spike
    again, and decides the same.

    Raises:
      NoUsableCheckpoint: it has saved steps, and none is good.
    """
    directory, skipping = run_dir.checkpoints_dir, needed.skipping
    step = _step_to_go_back_to(directory, skipping["from_step"], check)
    if step is not None and step > skipping["from_step"]:
        skipping = {**skipping, "from_step": step}
    with cluster.synchronized():
        if cluster.is_first():
            _delete_after(directory, -1 if step is None else step)
            run_dir.receipt.update_newest(
                lambda newest: _with_skipped(newest, skipping)
            )
    n, from_step = len(skipping["windows"]), skipping["from_step"]
    place = "the beginning" if step is None else f"step {step}"
    cluster.print_once(
        f"Going back to {place}; from step {from_step} on the {n} windows of the "
        "spike are skipped.",
        file=sys.stderr,
    )


def skipped_at(
    run_dir: RunDir, step: int, memory: dict[str, Any] | None
) -> list[Skipping]:
    """What the rewinds of a run skip, for one that goes on from a step.

    memory: of its checkpoint; None at the beginning. The receipt knows of rewinds to
    this step, too, after which nothing has been saved yet. One to an earlier step that
    the checkpoint does not know of is no part of the checkpoint's history.
    """
    remembered = ((memory or {}).get("spikes") or {}).get("skipped") or []
    if not cluster.is_first():
        return cluster.broadcast(remembered)
    written = [
        skipping
        for session in run_dir.receipt.sessions()
        for skipping in session.get("skipped") or []
    ]
    since = [s for s in written if s not in remembered and s["from_step"] >= step]
    return cluster.broadcast([*remembered, *since])


def _step_to_go_back_to(directory: Path, from_step: int, check: Check) -> int | None:
    """The newest good step up to from_step, else the oldest good one after it.

    None where nothing has been saved.
    """
    there = step_directories.numbers(directory) if directory.is_dir() else []
    steps = cluster.broadcast(there)
    old_enough = sorted((s for s in steps if s <= from_step), reverse=True)
    younger = sorted(s for s in steps if s > from_step)
    for step in [*old_enough, *younger]:
        found = verified.damage_of(directory, step, check)
        if not found:
            return step
        cluster.print_once(f"step {step}: {found[0]}; not used", file=sys.stderr)
        if check.strict:
            break
    if steps:
        raise NoUsableCheckpoint(
            f"{directory}: the run has to go back to step {from_step} because of a "
            "loss spike, and the step that it would go back to is damaged. Restore "
            "its files, or start anew with another --run-dir."
        )
    return None


def _delete_after(directory: Path, step: int) -> None:
    """Deletes all later steps, the newest first; each is there as a whole or not."""
    if not directory.is_dir():
        return
    _remove_superseded(directory)  # What a killed process left of them.
    for later in sorted(step_directories.numbers(directory), reverse=True):
        if later > step:
            folder = directory / str(later)
            folder.rename(folder.with_name(f"{SUPERSEDED}-{later}"))
    _remove_superseded(directory)


def _remove_superseded(directory: Path) -> None:
    for folder in directory.glob(f"{SUPERSEDED}-*"):
        shutil.rmtree(folder)


def _with_skipped(session: dict[str, Any], skipping: Skipping) -> dict[str, Any]:
    """A session of the receipt, with what a rewind skips."""
    return {**session, "skipped": [*session.get("skipped", []), skipping]}
