"""Frozen dataclasses as configuration: JSON, identity, differences."""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from typing import Any


class UserError(ValueError):
    """The request was wrong, or data looked at before compiling."""

    exit_code = 2


class DataWentBad(ValueError):
    """Data that was good when it was prepared cannot be read while running."""

    exit_code = 3


class NoUsableCheckpoint(ValueError):
    """A run has checkpoints, and none of them can be opened."""

    exit_code = 4


def free(default: Any = dataclasses.MISSING, *, default_factory: Any = None) -> Any:
    """A field that does not change the numbers, so is no part of a run's identity."""
    metadata = {"identity": False}
    if default_factory is not None:
        return dataclasses.field(default_factory=default_factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def is_free(field: dataclasses.Field) -> bool:
    return not field.metadata.get("identity", True)


def paths(tree: Mapping[str, Any], sep: str = "/") -> dict[str, Any]:
    """The leaves of nested dictionaries by path.

    >>> paths({"a": {"b": 1}, "c": 2})
    {'a/b': 1, 'c': 2}
    """
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            inner = paths(value, sep)
            flat.update({f"{key}{sep}{path}": leaf for path, leaf in inner.items()})
        else:
            flat[str(key)] = value
    return flat


def unpaths(flat: Mapping[str, Any], sep: str = "/") -> dict[str, Any]:
    """The inverse of `paths`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split(sep)
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = leaf
    return tree


def to_json(value: Any) -> Any:
    """A configuration as JSON: a dataclass becomes an object that names its type."""
    if hasattr(value, "spelling") and hasattr(type(value), "parse"):
        return {"type": type(value).__name__, "spelling": value.spelling}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in _fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{value!r} of type {type(value).__name__} is no configuration.")


def from_json(data: Any, classes: Mapping[str, type]) -> Any:
    """The configuration that `to_json` wrote; types are looked up in `classes`."""
    if isinstance(data, list):
        return tuple(from_json(item, classes) for item in data)
    if not isinstance(data, dict):
        return data
    name = data.get("type")
    if not isinstance(name, str) or name not in classes:
        raise UserError(
            f"Configuration names the class {name!r}, which jaxpar does not ship; give "
            "it to RunDir.open(...), or its file with --import."
        )
    kind = classes[name]
    if "spelling" in data and hasattr(kind, "parse"):
        return kind.parse(data["spelling"])  # type: ignore[attr-defined]
    fields = {f.name: f for f in _fields(kind)}
    given = {key: value for key, value in data.items() if key != "type"}
    for key in given.keys() - fields.keys():
        near = difflib.get_close_matches(key, fields, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise UserError(f"{name} has no field {key!r}{hint}")
    try:
        return kind(**{key: from_json(v, classes) for key, v in given.items()})
    except TypeError as error:
        raise UserError(f"{name} cannot be read: {error}") from error


def fingerprint(value: Any, **replaced: Any) -> str:
    """Eight hex digits over the fields that change the numbers.

    `replaced` overrides fields at the top level, for example a path by what it holds.
    """
    identity = {**_identity(value), **replaced}
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field in which two configurations differ; free ones may differ on resume."""

    path: str
    ours: Any
    theirs: Any
    free: bool

    def __str__(self) -> str:
        return f"{self.path}: {self.ours!r} here, {self.theirs!r} there"


def differences(ours: Any, theirs: Any) -> list[Difference]:
    """Field by field, how two configurations differ."""
    return list(_compare("", ours, theirs, False))


def _compare(path: str, ours: Any, theirs: Any, is_free_here: bool):
    same_kind = type(ours) is type(theirs)
    nested = dataclasses.is_dataclass(ours) and not hasattr(ours, "spelling")
    if not (same_kind and nested):
        if not _same(ours, theirs):
            yield Difference(path, _short(ours), _short(theirs), is_free_here)
        return
    for field in _fields(ours):
        inner = f"{path}.{field.name}" if path else field.name
        ours_, theirs_ = getattr(ours, field.name), getattr(theirs, field.name)
        yield from _compare(inner, ours_, theirs_, is_free_here or is_free(field))


def _same(ours: Any, theirs: Any) -> bool:
    """Equality as JSON keeps it: a list is a tuple, a NaN is itself."""
    if isinstance(ours, tuple | list) and isinstance(theirs, tuple | list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return ours == theirs or (ours != ours and theirs != theirs)


def _short(value: Any) -> Any:
    """A value as a person would write it."""
    if hasattr(value, "spelling"):
        return value.spelling
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__
    return value


def _identity(value: Any) -> Any:
    if hasattr(value, "spelling") and hasattr(type(value), "parse"):
        return value.spelling
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [f for f in _fields(value) if not is_free(f)]
        kept = {f.name: _identity(getattr(value, f.name)) for f in fields}
        return {"type": type(value).__name__, **kept}
    if isinstance(value, tuple | list):
        return [_identity(item) for item in value]
    return value


def _fields(kind: Any) -> tuple[dataclasses.Field, ...]:
    return tuple(f for f in dataclasses.fields(kind) if f.init)
