"""Loads another run's parameters by path; each must be accounted for."""

from fnmatch import fnmatchcase
from typing import Any

from jaxpar.errors import UserError
from jaxpar.tree import flatten, unflatten


def adopt(fresh: Any, pretrained: Any, *, keep_fresh: tuple[str, ...] = ()) -> Any:
    """The pretrained parameters, in a tree like that of the fresh ones.

    keep_fresh: globs of paths that keep their fresh values; of the pretrained
    parameters, it also names those that are to be left out.

    Raises:
      UserError: lists together what is missing, unused or does not fit, and globs of
        keep_fresh that match nothing.
    """
    ours, theirs = flatten(fresh), flatten(pretrained)

    def is_named(path: str) -> bool:
        return any(fnmatchcase(path, glob) for glob in keep_fresh)

    kept = {path for path in ours if is_named(path)}
    paths = ours.keys() | theirs.keys()
    problems = {
        "missing there": sorted(ours.keys() - theirs.keys() - kept),
        "unused here": sorted(
            path for path in theirs.keys() - ours.keys() if not is_named(path)
        ),
        "misfitting": sorted(
            f"{path} {ours[path].shape} {ours[path].dtype} here, "
            f"{theirs[path].shape} {theirs[path].dtype} there"
            for path in ours.keys() & theirs.keys() - kept
            if ours[path].shape != theirs[path].shape
            or ours[path].dtype != theirs[path].dtype
        ),
        "keep_fresh matches nothing": [
            glob for glob in keep_fresh if not any(fnmatchcase(p, glob) for p in paths)
        ],
    }
    if any(problems.values()):
        listed = [f"{what}: {items}" for what, items in problems.items() if items]
        raise UserError(
            f"The source's parameters do not account for this model's; "
            f"{'; '.join(listed)}. Name what may stay fresh in keep_fresh."
        )
    return unflatten(
        {path: ours[path] if path in kept else theirs[path] for path in ours}
    )
