"""Dispatch of a verb (subcommand), and what is printed of an error."""

import difflib
import os
import sys
import traceback
from collections.abc import Sequence

import jaxpar
from jaxpar.checkpoint import library_warnings
from jaxpar.cli.verbs import VERBS
from jaxpar.errors import JaxparError, UserError, exit_status, one_line
from jaxpar.guard.stopping import status_of

STATUSES = (
    "0 done, 1 failed, 2 wrong request, 3 damaged data, 4 no usable checkpoint,\n"
    "  42 nothing finished, 43 not finite, 44 copies differ, 75 stopped and saved,\n"
    "  130 and 143 ended by a signal with nothing unsaved; README.md has more"
)


def dispatch(argv: Sequence[str] | None = None) -> int:
    """Does what the words ask for; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if "--debug" not in args:
        library_warnings.shorten()
    try:
        return _run_verb(args) or 0
    except SystemExit as stop:
        # What --help ends with.
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("jaxpar: interrupted", file=sys.stderr)
        return _leave(status_of("SIGINT"))
    except BrokenPipeError as error:  # As of `| head`, which has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _leave(exit_status(error))
    except Exception as error:  # The outermost boundary: one line, and a status.
        if "--debug" in args:
            traceback.print_exc()
        unknown = not isinstance(error, JaxparError) and "--debug" not in args
        hint = " (--debug shows where)" if unknown else ""
        print(f"jaxpar: {one_line(error)}{hint}", file=sys.stderr)
        return _leave(exit_status(error))


def _run_verb(args: list[str]) -> int | None:
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0
    if args[0] == "--version":
        print(_version())
        return 0
    from jaxpar.sources.patterns import EXPERIMENT_FOLDER

    EXPERIMENT_FOLDER.set(None)
    for name, verb in VERBS.items():
        words = name.split()
        if args[: len(words)] == words:
            return verb.run(args[len(words) :])
    # Of a verb of two words, one may be missing.
    near = difflib.get_close_matches(" ".join(args[:2]), VERBS, 1, 0.7)
    near = near or difflib.get_close_matches(args[0], VERBS, 1)
    hint = f"; did you mean `jaxpar {near[0]}`?" if near else "."
    raise UserError(f"There is no verb {args[0]!r}{hint} There are {', '.join(VERBS)}.")


def _version() -> str:
    """The versions that a bug report needs; the library itself is not imported."""
    import platform
    from importlib.metadata import version

    python = platform.python_version()
    return f"jaxpar {jaxpar.__version__} (jax {version('jax')}, Python {python})"


def _help() -> str:
    width = max(map(len, VERBS))
    rows = [f"  {name.ljust(width)}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: jaxpar VERB EXPERIMENT|RUN [--field.path value ...]",
            "",
            *rows,
            "",
            "`jaxpar VERB EXPERIMENT --help` lists every field of that experiment.",
            "`jaxpar --version` prints the versions.",
            "",
            f"exit status: {STATUSES}",
        ]
    )


def _leave(status: int) -> int:
    """The status, once the other processes, if there are any, have failed, too."""
    if "jaxpar.partition.cluster" not in sys.modules:
        return status
    from jaxpar.partition import cluster

    return cluster.leave(status)
