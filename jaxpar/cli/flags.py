"""Loads an experiment's file, and makes flags of its fields."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args

import tyro

from jaxpar.cli.choices import choices, with_chosen_classes
from jaxpar.errors import UserError

FIELD = "experiment"
NAMES = ("experiment", "run")
"""What a file calls its experiment; older files, `run`."""


def load(path: str | Path) -> ModuleType:
    """A Python file as a module; it may import its neighbours, as a script may.

    For that, its folder and the working directory are added to the end of sys.path. The
    first file's folder is where data is looked up, too (EXPERIMENT_FOLDER), and
    jaxpar's deprecation warnings are shown from then on.

    Raises:
      UserError: it is no file of Python, or its own code fails.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "is no file"
        raise UserError(f"{path} {what}; name the Python file of an experiment.")
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file; its name must end in .py.")
    for folder in (str(path.resolve().parent), str(Path.cwd())):
        if folder not in sys.path:
            # At the end: a neighbour never hides an installed module.
            sys.path.append(folder)
    from jaxpar.sources.patterns import EXPERIMENT_FOLDER

    # The experiment's own file is loaded before others.
    if EXPERIMENT_FOLDER.get() is None:
        EXPERIMENT_FOLDER.set(path.resolve().parent)
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


def _module_name(path: str | Path) -> str:
    """A name for sys.modules, which files of one stem in two folders do not share."""
    digest = hashlib.sha256(os.fsencode(Path(path).resolve())).hexdigest()
    return f"jaxpar_experiment_{Path(path).stem}_{digest[:16]}"


def load_experiment(path: str | Path, *kinds: type) -> Any:
    """The value `experiment` that a file defines, of one of these classes.

    Older files call it `run`, which is still accepted.
    """
    return _experiment_in(load(path), path, *kinds)


def with_flags(
    kind: type, args: list[str], prog: str, file: str, *experiments: type
) -> Any:
    """Options, with an experiment's value as the flags change it.

    kind: the class of the options. experiments: the classes that the value may have.
    """
    module = load(file)
    experiment = _experiment_in(module, file, *experiments)
    own = _classes_of(module)
    return parse(kind, args, prog=f"{prog} {file}", experiment=experiment, own=own)


def events_of(file: str | Path) -> Any:
    """The value `events` of an experiment's file that is loaded; () where it has none.

    These are events of the user's own, which run in every process.
    """
    return vars(sys.modules[_module_name(file)]).get("events", ())


def _experiment_in(module: ModuleType, path: str | Path, *kinds: type) -> Any:
    """The value that `load_experiment` finds, of a file that is loaded."""
    names = " or ".join(_concrete_names(kinds))
    name, value = _value_in(module)
    if name is None:
        raise UserError(f"{path} defines no `experiment`; it must be a {names} value.")
    if not isinstance(value, kinds):
        raise UserError(
            f"{path}: `{name}` is a {type(value).__name__}; it must be a {names} value."
        )
    return value


def _value_in(module: ModuleType) -> tuple[str | None, Any]:
    """The name and value of a file's experiment; twice None where it has none."""
    found = ((name, vars(module)[name]) for name in NAMES if name in vars(module))
    return next(found, (None, None))


def _concrete_names(kinds: Sequence[type]) -> list[str]:
    """The names of classes; of an abstract one, those of its subclasses."""
    names = []
    for kind in kinds:
        below = kind.__subclasses__()
        names += [each.__name__ for each in below] if below else [kind.__name__]
    return names


def classes_in(files: Sequence[Path]) -> tuple[type, ...]:
    """The dataclasses that the files named by --import hold.

    Where a file holds an experiment, those that its value is made of are among them.
    """
    return tuple(kind for file in files for kind in _classes_of(load(file)))


def _classes_of(module: ModuleType) -> tuple[type, ...]:
    from jaxpar.run.directory import classes_of

    used = classes_of(_value_in(module)[1])
    defined = [each for each in vars(module).values() if isinstance(each, type)]
    return tuple(each for each in (*used, *defined) if dataclasses.is_dataclass(each))


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
    options: type,
    args: Sequence[str],
    *,
    prog: str,
    experiment: Any = None,
    own: Sequence[type] = (),
) -> Any:
    """Options from flags; an experiment's fields are flags, too, by their path.

    own: classes of the user's, which fields may be chosen to have.

    Raises UserError of one line; --help prints and raises SystemExit.
    """
    registry, description = tyro.constructors.ConstructorRegistry(), ""
    if experiment is not None:
        taken = [field.name for field in dataclasses.fields(options)]
        experiment, args = with_chosen_classes(experiment, args, own, taken=taken)
        described = "\n".join(map(str, choices(experiment, own)))
        description = f"A class is chosen before its fields:\n\n{described}"
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
                options,
                prog=prog,
                args=args,
                registry=registry,
                description=description,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
    raise UserError(_unboxed(written.getvalue()))


def _layout_rule(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec | None:
    from jaxpar.partition.auto_layout import AnyLayout, parse_layout

    if info.type not in (AnyLayout, *get_args(AnyLayout)):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="LAYOUT",
        instance_from_str=lambda words: parse_layout(words[0]),
        is_instance=lambda value: isinstance(value, AnyLayout),
        str_from_instance=lambda layout: [layout.spelling],
    )


def _unboxed(text: str) -> str:
    """One line of the message that tyro draws in a box.

    tyro's structured errors are in a private module, so its printed box is parsed.
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
