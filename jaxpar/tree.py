"""Nested dictionaries, such as parameter trees, by path."""

from collections.abc import Iterable, Mapping
from typing import Any

SEPARATOR = "/"


def flatten(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The leaves of nested dictionaries, each under its path.

    >>> flatten({"a": {"b": 1, 0: 2}, "c": 3})
    {'a/b': 1, 'a/0': 2, 'c': 3}
    """
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            for path, leaf in flatten(value).items():
                flat[f"{key}{SEPARATOR}{path}"] = leaf
        else:
            flat[str(key)] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`; every key is text.

    >>> unflatten({"a/b": 1, "a/0": 2, "c": 3})
    {'a': {'b': 1, '0': 2}, 'c': 3}
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split(SEPARATOR)
        inner = tree
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[name] = leaf
    return tree


def join(keys: Iterable[Any]) -> str:
    """One path of several keys.

    >>> join(["layers", 0, "w_q"])
    'layers/0/w_q'
    """
    return SEPARATOR.join(map(str, keys))


def path_of(key_path: Iterable[Any]) -> str:
    """The path that JAX's key path stands for: keys, field names and positions."""
    return join(_name(key) for key in key_path)


def suffixes(path: str) -> list[str]:
    """A path, and what is left of it after each of its folders.

    >>> suffixes("mu/layers/w_q")
    ['mu/layers/w_q', 'layers/w_q', 'w_q']
    """
    parts = path.split(SEPARATOR)
    return [SEPARATOR.join(parts[i:]) for i in range(len(parts))]


def _name(key: Any) -> Any:
    """JAX has a class of key for dictionaries, for attributes and for sequences."""
    for field in ("key", "name", "idx"):
        if hasattr(key, field):
            return getattr(key, field)
    return key
