"""Choosing parameters by path."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from jaxpar.errors import UserError


def matching(globs: Iterable[str], paths: Iterable[str], *, field: str) -> set[str]:
    """The paths that any of the globs match; a glob that matches none is refused."""
    paths = list(paths)
    found: set[str] = set()
    for glob in globs:
        hits = {path for path in paths if fnmatchcase(path, glob)}
        if not hits:
            near = difflib.get_close_matches(glob, paths, 3, 0.3)
            raise UserError(
                f"{field}: {glob!r} matches no parameter; near are {near or paths}."
            )
        found |= hits
    return found


STACKED = ("layers", "experts")  # axes that count matrices


def is_matrix(names: tuple[str, ...]) -> bool:
    """Whether a parameter maps between `embed` and a hidden axis, layer by layer.

    Experts are matrices of their own, so a router (embed to experts) is none.
    """
    inner = set(names) - set(STACKED)
    return "embed" in inner and bool(inner - {"embed", "vocab", "position"})


def sides(names: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dimensions of a matrix's rows and columns: those before and after `embed`.

    >>> sides(("layers", "embed", "heads", "head_dim"))
    ((1,), (2, 3))
    >>> sides(("layers", "experts", "mlp", "embed"))
    ((2,), (3,))
    """
    at = names.index("embed")
    rest = tuple(i for i, name in enumerate(names) if name not in (*STACKED, "embed"))
    return ((at,), rest) if rest[0] > at else (rest, (at,))
