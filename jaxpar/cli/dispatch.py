"""Dispatch of a verb (subcommand), and what is printed of an error."""

import sys
import traceback
from collections.abc import Sequence

from jaxpar.checkpoint import library_warnings
from jaxpar.cli.verbs import VERBS
from jaxpar.errors import UserError, exit_status, one_line
from jaxpar.guard.stopping import status_of


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
    except Exception as error:  # The outermost boundary: one line, and a status.
        if "--debug" in args:
            traceback.print_exc()
        print(f"jaxpar: {one_line(error)}", file=sys.stderr)
        return _leave(exit_status(error))


def _run_verb(args: list[str]) -> int | None:
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0
    for name, verb in VERBS.items():
        words = name.split()
        if args[: len(words)] == words:
            return verb.run(args[len(words) :])
    raise UserError(f"There is no verb {args[0]!r}; there are {', '.join(VERBS)}.")


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
        ]
    )


def _leave(status: int) -> int:
    """The status, once the other processes, if there are any, have failed, too."""
    if "jaxpar.partition.cluster" not in sys.modules:
        return status
    from jaxpar.partition import cluster

    return cluster.leave(status)
