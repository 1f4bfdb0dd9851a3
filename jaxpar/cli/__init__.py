"""The command line: `jaxpar VERB experiments/x.py --field.path value`."""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the words ask for; returns the exit status.

    SIGINT and SIGTERM are handled from the first line on: jaxpar.guard.stopping.
    """
    if sys.platform == "win32":
        print("jaxpar runs on Linux and macOS; on Windows, in WSL.", file=sys.stderr)
        return 2
    from jaxpar.guard.stopping import for_command
    from jaxpar.guard.time_account import within_command

    with for_command(), within_command():
        from jaxpar.cli.dispatch import dispatch

        return dispatch(argv)
