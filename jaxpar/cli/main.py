"""Dispatch of a verb, and what an error looks like from outside."""

import logging
import sys
import traceback
from collections.abc import Sequence

from jaxpar.cli.verbs import VERBS
from jaxpar.config import UserError

# What is raised in these has been compiled: the run failed, not the request.
RUNNING = ("jaxpar.train.loop", "jaxpar.train.evaluate")
FAILED, WRONG, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the words ask for; returns the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if "--debug" not in args:
        # Orbax warns of every directory that is opened read-only.
        logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        return _dispatch(args) or 0
    except SystemExit as stop:
        # What --help ends with.
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print("jaxpar: interrupted", file=sys.stderr)
        return _left(INTERRUPTED)
    except Exception as error:
        if "--debug" in args:
            traceback.print_exc()
        print(f"jaxpar: {_cause(error)}", file=sys.stderr)
        return _left(_status(error))


def _dispatch(args: list[str]) -> int | None:
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0
    for verb, (do, _) in VERBS.items():
        words = verb.split()
        if args[: len(words)] == words:
            return do(args[len(words) :])
    raise UserError(f"There is no verb {args[0]!r}; there are {', '.join(VERBS)}.")


def _help() -> str:
    width = max(map(len, VERBS))
    rows = [f"  {verb.ljust(width)}  {what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(
        [
            "usage: jaxpar VERB EXPERIMENT|RUN [--field.path value ...]",
            "",
            *rows,
            "",
            "`jaxpar VERB EXPERIMENT --help` lists every field of that experiment.",
        ]
    )


def _cause(error: Exception) -> str:
    """One line: the message where it is ours, else the error's class, too."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, ValueError | TypeError):
        return " ".join(" ".join(lines).split()) or type(error).__name__
    return f"{type(error).__name__}: {lines[0]}"


def _left(status: int) -> int:
    """The status, once the other processes, if there are any, have failed, too."""
    if "jaxpar.partition.cluster" not in sys.modules:
        return status
    from jaxpar.partition import cluster

    return cluster.leave(status)


def _status(error: Exception) -> int:
    if (status := getattr(error, "exit_code", None)) is not None:
        return status
    if not isinstance(error, ValueError | TypeError):
        return FAILED
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    running = any(frame.f_globals.get("__name__") in RUNNING for frame in frames)
    return FAILED if running else WRONG
