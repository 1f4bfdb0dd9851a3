"""Selects parameters by path (globs), and matrices by the names of their axes."""

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from jaxpar.errors import UserError


def matching(globs: Iterable[str], paths: Iterable[str], *, field: str) -> set[str]:
    """The paths that any of the globs match.

    field: the configuration's field that holds the globs, for the message.

    Raises:
      UserError: a glob matches no path.
    """
    paths = list(paths)
    matched: set[str] = set()
    for glob in globs:
        hits = {path for path in paths if fnmatchcase(path, glob)}
        if not hits:
            similar = difflib.get_close_matches(glob, paths, 3, 0.3)
            raise UserError(
                f"{field}: {glob!r} matches no parameter; similar are "
                f"{similar or paths}."
            )
        matched |= hits
    return matched


# Axes along which a parameter is a stack of matrices.
STACKED = ("layers", "experts")


def is_matrix(names: tuple[str, ...]) -> bool:
    """Whether a parameter is a matrix, or a stack of matrices, of a block.

    Such a matrix maps `embed` to a hidden axis, or back. Embeddings are none. Each
    expert is a matrix; a router (embed to experts) is none.
    """
    inner = set(names) - set(STACKED)
    return "embed" in inner and bool(inner - {"embed", "vocab", "position", "experts_"})


def sides(names: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The dimensions that are a matrix's rows, and those that are its columns.

    `embed` is one of the two, the other axes of the matrix, in their order, the other.

    >>> sides(("layers", "embed", "heads", "head_dim"))
    ((1,), (2, 3))
    >>> sides(("layers", "experts", "mlp", "embed"))
    ((2,), (3,))
    """
    embed = names.index("embed")
    others = tuple(i for i, name in enumerate(names) if name not in (*STACKED, "embed"))
    return ((embed,), others) if others[0] > embed else (others, (embed,))
