"""Parameters of another run, taken over one by one, or refused by name."""

from fnmatch import fnmatchcase
from typing import Any

from jaxpar.errors import UserError
from jaxpar.tree import flatten, unflatten


def adopt(fresh: Any, pretrained: Any, *, keep_fresh: tuple[str, ...] = ()) -> Any:
    """The pretrained parameters in the places of the fresh ones.

    keep_fresh: globs of paths that stay fresh on purpose; one that only the source has
    is left behind.

    Raises:
      UserError: lists together what is missing, unused or does not fit, and globs of
        keep_fresh that match nothing.
    """
    ours, theirs = flatten(fresh), flatten(pretrained)
    kept = {p for p in ours if any(fnmatchcase(p, glob) for glob in keep_fresh)}
    known = ours.keys() | theirs.keys()
    idle = [g for g in keep_fresh if not any(fnmatchcase(p, g) for p in known)]
    missing = sorted(ours.keys() - theirs.keys() - kept)
    unused = sorted(
        path
        for path in theirs.keys() - ours.keys()
        if not any(fnmatchcase(path, glob) for glob in keep_fresh)
    )
    misfits = sorted(
        f"{path} {ours[path].shape} {ours[path].dtype} here, "
        f"{theirs[path].shape} {theirs[path].dtype} there"
        for path in ours.keys() & theirs.keys() - kept
        if ours[path].shape != theirs[path].shape
        or ours[path].dtype != theirs[path].dtype
    )
    wrong = [
        f"{what}: {found}"
        for what, found in (
            ("missing there", missing),
            ("unused here", unused),
            ("misfitting", misfits),
            ("keep_fresh matches nothing", idle),
        )
        if found
    ]
    if wrong:
        raise UserError(
            f"The source's parameters do not account for this model's; "
            f"{'; '.join(wrong)}. Name what may stay fresh in keep_fresh."
        )
    return unflatten(
        {path: ours[path] if path in kept else theirs[path] for path in ours}
    )
