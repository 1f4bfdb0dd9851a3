"""The directory that Orbax keeps steps in, looked at without Orbax."""

import contextlib
import itertools
from pathlib import Path

from jaxpar.errors import NoUsableCheckpoint, UserError
from jaxpar.guard.manifest import Damage
from jaxpar.guard.sealed_json import json_object

PARAMS, REST, MEMORY = "params", "rest", "memory"
METRICS, METADATA = "metrics/metrics", "_CHECKPOINT_METADATA"
"""What Orbax reads of every step when it opens a directory to write to."""


def prepare(directory: Path) -> None:
    """Makes a directory safe to write to: removes empty steps, refuses damaged ones.

    Orbax counts every directory with a number as a step: an empty one would make it
    refuse all earlier steps, and a damaged one would count among the newest `keep`.
    Only damaged steps after the last complete one are refused: an earlier one is what
    an interrupted deletion leaves.
    """
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file; checkpoints need a directory.")
    for step in numbers(directory):
        with contextlib.suppress(OSError):  # It is not empty.
            (directory / str(step)).rmdir()
    damaged = incomplete(directory)
    newest = max(set(numbers(directory)) - set(damaged), default=None)
    newer = [step for step in damaged if newest is not None and step > newest]
    if newer:
        raise UserError(
            f"{directory} has the damaged steps {newer}, which lack {PARAMS}/; move "
            f"them elsewhere to go on from step {newest}."
        )
    for step in numbers(directory):
        if damage := damage_when_opened(directory / str(step)):
            raise NoUsableCheckpoint(
                f"{directory / str(step)}/{damage}; Orbax opens no step "
                "beside it. Move it elsewhere."
            )


def numbers(directory: Path) -> list[int]:
    """The numbers of the directories that Orbax takes for steps."""
    return sorted(
        int(path.name)
        for path in directory.iterdir()
        if path.name.isdecimal() and path.is_dir()
    )


def incomplete(directory: Path) -> list[int]:
    """The steps that hold something, but no parameters."""
    return [
        step
        for step in numbers(directory)
        if any((directory / str(step)).iterdir())
        and not (directory / str(step) / PARAMS).is_dir()
    ]


def is_marked_best(folder: Path) -> bool:
    """Whether a step says itself that it was the best when it was saved."""
    try:
        item = json_object((folder / MEMORY / "metadata").read_bytes())
        return bool(item.get("is_best"))
    except (OSError, ValueError):
        return False


def damage_of_json(folder: Path, name: str) -> Damage | None:
    """What is wrong with a JSON file of a step; nothing where it is missing."""
    try:
        json_object((folder / name).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return Damage(name, str(error))
    return None


def damage_when_opened(folder: Path) -> Damage | None:
    """What keeps Orbax from opening the directory that this step stands in."""
    for name in (METADATA, METRICS):
        if damage := damage_of_json(folder, name):
            return damage
    path = folder / METRICS
    item = json_object(path.read_bytes()) if path.is_file() else {"rank": 0.0}
    if isinstance(item.get("rank"), int | float):
        return None
    return Damage(METRICS, f"no number is its rank ({item!r:.80})")


def move_aside(folder: Path) -> Path:
    """Renames a step's directory so that Orbax takes it for none; the new path."""
    first = folder.with_name(f"damaged-{folder.name}")
    more = (first.with_name(f"{first.name}-{n}") for n in itertools.count(2))
    free = (path for path in itertools.chain([first], more) if not path.exists())
    return folder.rename(next(free))


def moved_aside(directory: Path) -> list[str]:
    """The names of the directories that `move_aside` made, sorted."""
    if not directory.is_dir():
        return []
    names = (path.name for path in directory.iterdir())
    return sorted(name for name in names if name.startswith("damaged-"))
