"""Loads an experiment's file, and makes flags of its fields."""

import contextlib
import dataclasses
import importlib.util
import io
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import tyro

from jaxpar.errors import UserError

FIELD = "experiment"


def load(path: str | Path) -> ModuleType:
    """A Python file as a module; it may import its neighbours, as a script may."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file {path}; name a Python file.")
    name = f"jaxpar_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; its name must end in .py.")
    for folder in (str(path.resolve().parent), str(Path.cwd())):
        if folder not in sys.path:
            # At the end: a neighbour never hides an installed module.
            sys.path.append(folder)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up here.
    sys.modules[name] = module
    # Python hides these outside a main program; here they are for who runs the file.
    warnings.filterwarnings("default", "jaxpar", DeprecationWarning)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # It is the user's own code.
        raise UserError(f"{path}: {type(error).__name__}: {error}") from error
    return module


def load_experiment(path: str | Path, *kinds: type) -> Any:
    """The value `experiment` that a file defines, of one of these classes.

    Older files call it `run`, which is still accepted.
    """
    defined = vars(load(path))
    names = " or ".join(_concrete_names(kinds))
    found = [name for name in ("experiment", "run") if name in defined]
    if not found:
        raise UserError(f"{path} defines no `experiment`; it must be a {names} value.")
    value = defined[found[0]]
    if not isinstance(value, kinds):
        raise UserError(
            f"{path}: `{found[0]}` is a {type(value).__name__}; it must be a {names} "
            "value."
        )
    return value


def _concrete_names(kinds: Sequence[type]) -> list[str]:
    """The names of classes; of an abstract one, those of its subclasses."""
    names = []
    for kind in kinds:
        below = kind.__subclasses__()
        names += [each.__name__ for each in below] if below else [kind.__name__]
    return names


def classes_in(files: Sequence[Path]) -> tuple[type, ...]:
    """The dataclasses that the files named by --import hold."""
    found = [value for file in files for value in vars(load(file)).values()]
    return tuple(
        value
        for value in found
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    )


def split_first(
    args: Sequence[str], options: type, *, prog: str, what: str
) -> tuple[str, list[str]]:
    """The file or run that a verb's arguments begin with, and the other arguments."""
    if args and not args[0].startswith("-"):
        return args[0], list(args[1:])
    # Answers --help, and says what is wrong with a flag, before the name is missed.
    parse(options, args, prog=f"{prog} {what}")
    raise UserError(f"{prog} needs its {what} first: {prog} {what} [OPTIONS].")


def parse(
    options: type, args: Sequence[str], *, prog: str, experiment: Any = None
) -> Any:
    """Options from flags; an experiment's fields are flags, too, by their path.

    Raises UserError of one line; --help prints and raises SystemExit.
    """
    registry = tyro.constructors.ConstructorRegistry()
    if experiment is not None:
        registry.primitive_rule(_layout_rule)
        # Its own class gives the flags, whatever the fields are annotated with.
        kind = Annotated[type(experiment), tyro.conf.arg(name="")]
        field = (FIELD, kind, dataclasses.field(default=experiment))
        options = dataclasses.make_dataclass(
            "Request", [field], bases=(options,), frozen=True, kw_only=True
        )
    written = io.StringIO()
    try:
        with contextlib.redirect_stderr(written):
            return tyro.cli(
                options, prog=prog, args=args, registry=registry, description=""
            )
    except SystemExit as stop:
        if not stop.code:
            raise
    raise UserError(_unboxed(written.getvalue()))


def _layout_rule(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
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
    """One line of the message that tyro draws in a box.

    What it says otherwise, it says through a module that it calls private and unstable.
    """
    parts: list[list[str]] = [[]]
    for row in text.splitlines()[1:]:
        row = row.strip(" │╭╮╰╯|+")
        if set(row) <= set("─-"):
            parts.append([])
        else:
            parts[-1].append(row)
    footers = ("Argument helptext", "For full helptext")
    lines = [" ".join(part).replace(f" {FIELD}.", " ", 1) for part in parts if part]
    return "; ".join(line for line in lines if not line.startswith(footers))
