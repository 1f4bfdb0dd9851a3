"""Choices of a class on the command line, as --optim muon, before flags are made."""

import copy
import dataclasses
import difflib
import inspect
import typing
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from jaxpar.config import Spelled
from jaxpar.errors import UserError


class Choice(NamedTuple):
    """A field whose class can be chosen."""

    flag: str
    kinds: dict[str, type]
    """The classes, by what is typed for them."""

    def __str__(self) -> str:
        return f"{self.flag} {'|'.join(self.kinds)}"


def with_chosen_classes(
    experiment: Any, args: Sequence[str], own: Sequence[type], *, taken: Collection[str]
) -> tuple[Any, list[str]]:
    """The experiment with the classes that arguments name, and all other arguments.

    A field that the replaced class also has keeps its value. One that has neither value
    nor default has to be given by its own flag.

    own: classes to choose from beside those that jaxpar ships. taken: names of options
    that are no fields.

    Raises:
      UserError: there is no such class, or a field without a value is not given.
    """
    flags = {i: each.partition("=")[0] for i, each in enumerate(args)}
    paths = {i: _path(flag) for i, flag in flags.items() if flag.startswith("--")}
    used, missing = set(), []
    # A class is chosen before those of its fields.
    for i, path in sorted(paths.items(), key=lambda item: len(item[1])):
        choice = None if path[0] in taken else _choice_at(experiment, path, own)
        if choice is None:
            continue
        last = i if "=" in args[i] else i + 1
        name = [*args, ""][last].removeprefix(f"{flags[i]}=")
        experiment, fields = _with(experiment, path, *_kind(choice, name))
        missing += [(f"{choice.flag} {name}", each) for each in fields]
        used |= {i, last}
    rest = [each for i, each in enumerate(args) if i not in used]
    given = {tuple(path) for path in paths.values()}
    for chosen, path in missing:
        if tuple(path) not in given and not {"-h", "--help"} & set(args):
            raise UserError(f"{chosen}: {_flag(path)} is missing; it has no default.")
    return experiment, rest


def choices(experiment: Any, own: Sequence[type] = ()) -> Iterator[Choice]:
    """Every field of an experiment, and of its fields, whose class can be chosen."""
    paths = [[name] for name in _names(experiment)]
    for path in paths:  # Grows while it is read.
        if choice := _choice_at(experiment, path, own):
            yield choice
        if _is_config(value := _at(experiment, path)):
            paths += [[*path, name] for name in _names(value)]


def _path(flag: str) -> list[str]:
    return flag[2:].replace("-", "_").split(".")


def _flag(path: Sequence[str]) -> str:
    return f"--{'.'.join(path).replace('_', '-')}"


def _at(value: Any, path: Sequence[str]) -> Any:
    """The value at a path of fields; None where there is none."""
    for name in path:
        value = getattr(value, name, None) if _is_config(value) else None
    return value


def _is_config(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type | Spelled)


def _choice_at(experiment: Any, path: list[str], own: Sequence[type]) -> Choice | None:
    """What can be chosen for a field; None where there are no two classes of it."""
    from jaxpar.experiment import CLASSES, FromSource

    owner, now = _at(experiment, path[:-1]), _at(experiment, path)
    if not _is_config(owner) or not _is_config(now):
        return None
    try:
        base = typing.get_type_hints(type(owner)).get(path[-1])
    except NameError:  # Of a class of the user's, which names what is not imported.
        return None
    if not isinstance(base, type):
        return None
    shipped = [each for each in CLASSES.values() if each is not FromSource]
    added = [each for each in (*own, type(now)) if each is not base]
    kinds = {
        each.__name__.lower(): each
        for each in (*shipped, *added)
        if issubclass(each, base) and not inspect.isabstract(each)
    }
    return Choice(_flag(path), kinds) if len(kinds) > 1 else None


def _kind(choice: Choice, name: str) -> tuple[type, dict[str, Any]]:
    """The class of this name, or the one that reads this file, with its values."""
    if kind := choice.kinds.get(name.lower()):
        return kind, {}
    for kind in choice.kinds.values():
        if "path" in _names(kind) and (name.endswith(".json") or Path(name).exists()):
            return kind, {"path": name}
    near = difflib.get_close_matches(name.lower(), choice.kinds, 1)
    raise UserError(
        f"{choice.flag} {name or 'without a name'}: it must be one of "
        f"{', '.join(choice.kinds)}{f'; did you mean {near[0]}?' if near else '.'}"
    )


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.init]


def _with(
    experiment: Any, path: list[str], kind: type, values: dict[str, Any]
) -> tuple[Any, list[list[str]]]:
    """An experiment with a field of this class, and the paths that have no value yet.

    Nothing is checked: these would be refused before their flags are read.
    """
    before = _at(experiment, path)
    new, missing = object.__new__(kind), []
    for field in (each for each in dataclasses.fields(kind) if each.init):
        value = getattr(before, field.name, field.default)
        value = values.get(field.name, value)
        if value is dataclasses.MISSING and callable(field.default_factory):
            value = field.default_factory()
        if value is dataclasses.MISSING:
            missing.append([*path, field.name])
            value = tyro.MISSING
        object.__setattr__(new, field.name, value)
    for depth in range(len(path) - 1, -1, -1):
        owner = copy.copy(_at(experiment, path[:depth]))
        object.__setattr__(owner, path[depth], new)
        new = owner
    return new, missing
