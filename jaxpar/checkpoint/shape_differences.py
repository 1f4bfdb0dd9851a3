"""What differs in shape or type between what is stored and what is wanted."""

from typing import Any

import jax

from jaxpar.tree import path_of


def listed(stored: Any, wanted: Any) -> str:
    """The first few differences between two pytrees, by path; empty where none is."""
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
