"""Frozen dataclasses as configuration: JSON, fingerprint, differences."""

import abc
import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Self

from jaxpar.errors import UserError

MISSING: Any = dataclasses.MISSING


class Spelled(abc.ABC):
    """A value that configuration files and flags write as one short text."""

    spelling: str

    @classmethod
    @abc.abstractmethod
    def parse(cls, text: str) -> Self:
        """The value that a text spells; the inverse of `spelling`."""


def free(default: Any = MISSING) -> Any:
    """A field that does not change the numbers, so it is no part of the fingerprint."""
    return dataclasses.field(default=default, metadata={"identity": "never"})


def added(default: Any) -> Any:
    """A field that older runs did not have: in the fingerprint only off its default.

    So the fingerprints of experiments that were written before it stay as they were.
    """
    return dataclasses.field(
        default=default, kw_only=True, metadata={"identity": "off default"}
    )


def is_free(field: dataclasses.Field) -> bool:
    """Whether a resumed run may have another value in this field."""
    return field.metadata.get("identity") == "never"


def require_positive(config: Any, *names: str) -> None:
    """Refuses a configuration in which one of these sizes or counts is below 1.

    Raises:
      UserError: the first of them, with its value.
    """
    for name in names:
        if (value := getattr(config, name)) < 1:
            raise UserError(f"{name}={value}; it must be 1 or more.")


def to_json(value: Any) -> Any:
    """A configuration as JSON: a dataclass becomes an object that names its type."""
    if isinstance(value, Spelled):
        return {"type": type(value).__name__, "spelling": value.spelling}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: to_json(getattr(value, f.name)) for f in _fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(
        f"{value!r} of type {type(value).__name__} cannot stand in a configuration; it "
        "takes numbers, texts, tuples and frozen dataclasses."
    )


def from_json(data: Any, classes: Mapping[str, type]) -> Any:
    """The configuration that `to_json` wrote; types are looked up in `classes`.

    Raises:
      UserError: a class or a field is unknown, or a value is refused.
    """
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
    if issubclass(kind, Spelled):
        return kind.parse(data["spelling"])
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
    """Eight hexadecimal digits over the fields that change the numbers.

    `replaced` overrides fields at the top level, for example a path by what it holds.
    """
    identity = {**_identity(value), **replaced}
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A field in which two configurations differ.

    free: a resumed run may have another value in it.
    """

    path: str
    ours: Any
    theirs: Any
    free: bool

    def __str__(self) -> str:
        return f"{self.path}: {self.ours!r} here, {self.theirs!r} there"


def differences(ours: Any, theirs: Any) -> list[Difference]:
    """Field by field, how two configurations differ."""
    return list(_compare("", ours, theirs, False))


def _compare(path: str, ours: Any, theirs: Any, is_in_free: bool) -> Iterator:
    same_kind = type(ours) is type(theirs)
    nested = dataclasses.is_dataclass(ours) and not isinstance(ours, Spelled)
    if not (same_kind and nested):
        if not _same(ours, theirs):
            yield Difference(path, _short(ours), _short(theirs), is_in_free)
        return
    for field in _fields(ours):
        inner = f"{path}.{field.name}" if path else field.name
        mine, other = getattr(ours, field.name), getattr(theirs, field.name)
        yield from _compare(inner, mine, other, is_in_free or is_free(field))


def _same(ours: Any, theirs: Any) -> bool:
    """Equality as JSON keeps it: a list is a tuple, a NaN is itself."""
    if isinstance(ours, tuple | list) and isinstance(theirs, tuple | list):
        return len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return ours == theirs or (ours != ours and theirs != theirs)


def _short(value: Any) -> Any:
    """A value as a person would write it."""
    if isinstance(value, Spelled):
        return value.spelling
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return type(value).__name__
    return value


def _identity(value: Any) -> Any:
    """What the fingerprint is taken of."""
    if isinstance(value, Spelled):
        return value.spelling
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kept = {
            field.name: _identity(_content(field, getattr(value, field.name)))
            for field in _fields(value)
            if _counts(field, getattr(value, field.name))
        }
        return {"type": type(value).__name__, **kept}
    if isinstance(value, tuple | list):
        return [_identity(item) for item in value]
    return value


def _content(field: dataclasses.Field, value: Any) -> Any:
    """What a field that names a file holds, where its metadata says how to read it."""
    read = field.metadata.get("content")
    return read(value) if read else value


def _counts(field: dataclasses.Field, value: Any) -> bool:
    if "content" in field.metadata:
        return True
    if field.metadata.get("identity") == "off default":
        return _identity(value) != _identity(field.default)
    return not is_free(field)


def _fields(kind: Any) -> tuple[dataclasses.Field, ...]:
    return tuple(f for f in dataclasses.fields(kind) if f.init)
