"""From words to values: an experiment's file, and typed options over it."""

import contextlib
import dataclasses
import importlib.util
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro

from jaxpar.config import UserError


def load(path: str | Path) -> ModuleType:
    """A Python file as a module; it may import its neighbours, as a script may."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}; name a Python file.")
    name = f"jaxpar_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file; its name must end in .py.")
    for folder in (str(path.resolve().parent), str(Path.cwd())):
        if folder not in sys.path:
            # At the end: a neighbour never hides an installed module.
            sys.path.append(folder)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up here.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    return module


def experiment(path: str | Path, *kinds: type) -> Any:
    """The value `run` that an experiment's file defines, of one of these classes."""
    defined = vars(load(path))
    names = " or ".join(kind.__name__ for kind in kinds)
    if "run" not in defined:
        raise UserError(f"{path} defines no `run`; it must be a {names} value.")
    run = defined["run"]
    if not isinstance(run, kinds):
        raise UserError(
            f"{path}: `run` is a {type(run).__name__}; it must be a {names} value."
        )
    return run


def classes(files: Sequence[Path]) -> tuple[type, ...]:
    """The dataclasses that the files named by --import hold."""
    found = [value for file in files for value in vars(load(file)).values()]
    return tuple(
        value
        for value in found
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    )


def first(args: Sequence[str], options: type, *, prog: str, what: str):
    """The file or run that a verb's arguments begin with, and the other arguments."""
    if args and not args[0].startswith("-"):
        return args[0], list(args[1:])
    # Answers --help, and says what is wrong with a flag, before the name is missed.
    parse(options, args, prog=f"{prog} {what}")
    raise UserError(f"{prog} needs its {what} first: {prog} {what} [OPTIONS].")


def parse(options: type, args: Sequence[str], *, prog: str, run: Any = None) -> Any:
    """Options from flags; with a run, its fields are flags, too, by their path.

    Raises UserError of one line; --help prints and raises SystemExit.
    """
    registry = tyro.constructors.ConstructorRegistry()
    if run is not None:
        registry.primitive_rule(_layout_rule)
        # The run's own class gives the flags, whatever the fields are annotated with.
        kind = Annotated[type(run), tyro.conf.arg(name="")]
        field = ("run", kind, dataclasses.field(default=run))
        options = dataclasses.make_dataclass(
            "Request", [field], bases=(options,), frozen=True, kw_only=True
        )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                options, prog=prog, args=args, registry=registry, description=""
            )
    except SystemExit as stop:
        if not stop.code:
            raise
    raise UserError(_unboxed(said.getvalue()))


def _layout_rule(info: tyro.constructors.PrimitiveTypeInfo):
    from jaxpar.partition.layout import Layout

    if info.type is not Layout:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="LAYOUT",
        instance_from_str=lambda words: Layout.parse(words[0]),
        is_instance=lambda value: isinstance(value, Layout),
        str_from_instance=lambda layout: [layout.spelling],
    )


def _unboxed(text: str) -> str:
    """One line of a framed message: what is wrong, and what may have been meant."""
    parts: list[list[str]] = [[]]
    for row in text.splitlines()[1:]:
        row = row.strip(" │╭╮╰╯|+")
        if set(row) <= set("─-"):
            parts.append([])
        else:
            parts[-1].append(row)
    footers = ("Argument helptext", "For full helptext")
    said = [" ".join(part).replace(" run.", " ", 1) for part in parts if part]
    return "; ".join(part for part in said if not part.startswith(footers))
