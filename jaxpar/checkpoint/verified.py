"""Verification of a run's steps, and the choice of one that is good."""

import dataclasses
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from jaxpar.checkpoint import step_directories
from jaxpar.checkpoint.step_directories import MEMORY, METADATA, METRICS, PARAMS, REST
from jaxpar.errors import NoUsableCheckpoint
from jaxpar.guard import manifest
from jaxpar.guard.manifest import Damage
from jaxpar.partition import cluster
from jaxpar.tables import for_messages

JSON_FILES = (
    f"{MEMORY}/metadata",
    METRICS,
    METADATA,
    f"{PARAMS}/_METADATA",
    f"{REST}/_METADATA",
)
How = Literal["full", "sizes", "none"]


@dataclasses.dataclass(frozen=True)
class Check:
    """How a step is verified before it is read, and what happens if it is damaged.

    how: "full" compares sizes and content with the step's manifest, "sizes" only the
    sizes, "none" nothing. strict: refuse a damaged step, or one without a manifest,
    rather than going back to an older one.
    """

    how: How = "full"
    strict: bool = False


def damage_of(
    directory: Path, step: int, check: Check, *, below: str = ""
) -> list[Damage]:
    """What is wrong with a step; empty where nothing is found.

    below: look only at files whose path begins so. A step without a manifest is
    opened with a warning, after what can be checked without one. Every process calls
    it, and gets the same answer.
    """
    if check.how == "none":
        return []
    folder = directory / str(step)
    if cluster.broadcast(not folder.resolve().is_relative_to(directory.resolve())):
        return [Damage(".", "a link that leaves the run")]
    if cluster.broadcast(manifest.exists(folder)):
        return manifest.verify(folder, sizes_only=check.how == "sizes", below=below)
    if check.strict:
        return [Damage(manifest.NAME, "missing")]
    found = [Damage(*pair) for pair in cluster.broadcast(_without_manifest(folder))]
    if not found and not below:
        cluster.print_once(
            f"{folder} has no {manifest.NAME}: an older jaxpar saved it, or the "
            "process ended before it was written. Its content cannot be verified.",
            file=sys.stderr,
        )
    return [damage for damage in found if damage.file.startswith(below)]


def require_good(directory: Path, step: int, check: Check) -> None:
    """Refuses a damaged step that was asked for by its number.

    Raises:
      NoUsableCheckpoint: it is damaged; names the file.
    """
    if found := damage_of(directory, step, check):
        raise NoUsableCheckpoint(
            f"{directory / str(step)} is damaged: {_listed(found)}. Restore its files, "
            "or choose another step."
        )


def newest_good(
    directory: Path, steps: Iterable[int], check: Check, *, best: Iterable[int] = ()
) -> int:
    """The newest good step, or the newest good one of the best, if one of them is.

    A line on stderr says for each step that is passed over what is wrong with it.

    Raises:
      NoUsableCheckpoint: none is good, or, if the check is strict, the first is not.
    """
    order = [*sorted(best, reverse=True)]
    order += [step for step in sorted(steps, reverse=True) if step not in order]
    order = cluster.broadcast(order)
    bad: dict[int, list[Damage]] = {}
    for step in order:
        if not (found := damage_of(directory, step, check)):
            _report(bad, f"going back to step {step}")
            return step
        bad[step] = found
        if check.strict:
            break
    reasons = "; ".join(f"step {step}: {_listed(bad[step])}" for step in bad)
    rest = "refused by --strict" if check.strict else "none of its steps is whole"
    raise NoUsableCheckpoint(
        f"{directory}: {reasons}; {rest}. Restore the files, or start anew with "
        "another --run-dir."
    )


def best_of(
    directory: Path, steps: Iterable[int], marked: Iterable[int], check: Check
) -> list[int]:
    """The marked steps, without those of which it is not sure that they were the best.

    A line on stderr names each step whose mark is damaged.

    Raises:
      NoUsableCheckpoint: a mark is damaged, and the check is strict.
    """
    bad = {
        step: found
        for step in cluster.broadcast(sorted(steps))
        if (found := damage_of(directory, step, check, below=MEMORY))
    }
    if bad and check.strict:
        step, found = bad.popitem()
        raise NoUsableCheckpoint(
            f"{directory / str(step)} is damaged: {_listed(found)}; refused by "
            "--strict, since it may be the best. Restore its files, or choose --step."
        )
    _report(bad, "it is not known whether it was the best")
    return [step for step in marked if step not in bad]


def resumable(directory: Path, check: Check) -> int | None:
    """The newest good step of a run that goes on; None where there is no step.

    Orbax saves no step below one that exists, and reads the metrics of all when it
    opens them. So damaged steps after the one that is returned, and those that it could
    not open, are moved aside: `step_directories.move_aside`.

    Raises:
      NoUsableCheckpoint: none is good, or, if the check is strict, one is damaged.
    """
    steps = cluster.broadcast(_with_content(directory))
    if not steps:
        return None
    good = newest_good(directory, steps, check)
    for step in steps:
        if step > good:
            _set_aside(directory, step)
        elif step < good and (found := _damage_when_opened(directory, step, check)):
            if check.strict:
                raise NoUsableCheckpoint(
                    f"{directory / str(step)} is damaged: {_listed(found)}; refused by "
                    "--strict. Restore its files, or move it elsewhere."
                )
            _report({step: found}, "this step is not used")
            _set_aside(directory, step)
    return good


def check_all(directory: Path, check: Check) -> tuple[list[int], dict[int, list[str]]]:
    """The good steps of a run, and the damaged files of the others."""
    steps = _with_content(directory)
    found = {step: damage_of(directory, step, check) for step in steps}
    for step, damages in found.items():
        for damage in damages:
            print(f"step {step}: {damage}", file=for_messages())
    good = [step for step in steps if not found[step]]
    return good, {s: [d.file for d in found[s]] for s in steps if found[s]}


def _with_content(directory: Path) -> list[int]:
    """The numbers of the steps that are no empty directories."""
    if not directory.is_dir():
        return []
    steps = step_directories.numbers(directory)
    return [step for step in steps if any((directory / str(step)).iterdir())]


def _damage_when_opened(directory: Path, step: int, check: Check) -> list[Damage]:
    """What is wrong with what Orbax reads of each step when it opens their directory.

    It is looked at even if nothing is to be checked. What is missing is no damage:
    Orbax does without, and an interrupted deletion leaves a step like that.
    """
    folder = directory / str(step)
    if pair := cluster.broadcast(step_directories.damage_when_opened(folder)):
        return [Damage(*pair)]
    if not cluster.broadcast((folder / METRICS).is_file() and manifest.exists(folder)):
        return []
    return damage_of(directory, step, check, below=METRICS)


def _without_manifest(folder: Path) -> list[Damage]:
    """What can be seen to be wrong with a step that has no manifest."""
    found = manifest.links_out(folder)
    found += [
        Damage(item, "missing")
        for item in (PARAMS, REST, MEMORY)
        if not (folder / item).is_dir()
    ]
    found += [
        damage
        for name in JSON_FILES
        if (damage := step_directories.damage_of_json(folder, name))
    ]
    named = {damage.file for damage in found}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in named and path.is_file() and not path.stat().st_size:
            found.append(Damage(name, "empty"))
    return found


def _set_aside(directory: Path, step: int) -> None:
    with cluster.synchronized():
        if cluster.is_first():
            aside = step_directories.move_aside(directory / str(step))
            print(f"step {step} was moved to {aside}.", file=for_messages())


def _report(bad: dict[int, list[Damage]], then: str) -> None:
    """A line on stderr for each damaged step, and what follows from it."""
    for step, found in bad.items():
        cluster.print_once(f"step {step}: {_listed(found)}; {then}", file=sys.stderr)


def _listed(found: list[Damage]) -> str:
    """The first few damaged files, each with what is wrong."""
    more = f" and {len(found) - 3} more files" if len(found) > 3 else ""
    return "; ".join(map(str, found[:3])) + more
