"""A save that failed: what is left of it, and what the person is asked to do."""

import errno
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Literal

import jax

from jaxpar.errors import SaveFailed, one_line
from jaxpar.partition import cluster
from jaxpar.tables import size_of

OnSaveError = Literal["stop", "go_on"]
UNFINISHED = ".orbax-checkpoint-tmp"
"""How the name of a step ends while Orbax writes it."""
FULL = (errno.ENOSPC, errno.EDQUOT)
OS_ERROR = re.compile(r"os_error_code='(\d+)'")
"""How the storage library, which raises errors of its own, names the system's error."""
LOOK_SECONDS, ENOUGH_LOOKS, MOST_LOOKS = 0.05, 5, 100


def explained(
    error: Exception, directory: Path, what: str, *, newest: int | None, n_bytes: int
) -> SaveFailed:
    """The error of a save as one line: what failed, why, and what to do.

    what: could not be saved, as in "step 4". newest: the last step that is saved.
    n_bytes: of the state; 0 where that is not known.
    """
    number, reason = _cause(error)
    facts = f"{directory}: {what} could not be saved: {reason}."
    if number in FULL:
        size = f" A checkpoint takes up to {size_of(n_bytes)};" if n_bytes else ""
        free = size_of(free_bytes(directory))
        facts += f"{size} {free} are free there. Free some space, or lower --keep."
    then = "begins anew" if newest is None else f"goes on from step {newest}"
    return SaveFailed(f"{facts} The same command {then}.")


def warn_if_full(directory: Path, state: Any) -> None:
    """Says on stderr if a checkpoint of this state may not fit on the disk."""
    n_bytes, free = state_bytes(state), free_bytes(directory)
    if free < n_bytes:
        cluster.print_once(
            f"{directory}: a checkpoint takes up to {size_of(n_bytes)}, and only "
            f"{size_of(free)} are free there; saving may fail.",
            file=sys.stderr,
        )


def free_bytes(directory: Path) -> int:
    """The bytes that this user may still write to a directory's file system.

    A quota may allow fewer.
    """
    while not directory.exists():
        directory = directory.parent
    return shutil.disk_usage(directory).free


def state_bytes(state: Any) -> int:
    """How many bytes the arrays of a state have, on all devices together."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def remove_unfinished(directory: Path) -> None:
    """Removes what saves that failed have left; to be called while none is running.

    Threads of the storage library may go on to write there, and make it again, so this
    waits until it stays away: a moment, and at most some seconds.
    """
    looks_without = 0
    for _ in range(MOST_LOOKS):
        left = [path for path in directory.iterdir() if _is_unfinished(path)]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        looks_without = 0 if left else looks_without + 1
        if looks_without == ENOUGH_LOOKS:
            return
        time.sleep(LOOK_SECONDS)


def _is_unfinished(path: Path) -> bool:
    number, _, _ = path.name.partition(".")
    return number.isdecimal() and path.name.endswith(UNFINISHED)


def _cause(error: Exception) -> tuple[int | None, str]:
    """The number of the system's error, if there is one, and the reason in words."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := OS_ERROR.search(str(error))):
        number = int(found[1])
    if number is None:
        return None, one_line(error)[:300]
    return number, os.strerror(number)
