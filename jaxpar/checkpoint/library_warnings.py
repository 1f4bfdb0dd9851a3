"""What the checkpoint library logs: warnings as a line each, and no error twice."""

import functools
import logging
import sys
import traceback
from collections.abc import Callable
from typing import Any

LOGGER = "absl"
"""The logger that Orbax, and other libraries of Google's, write to."""
OF_EVERY_CALL = (
    "CheckpointManagerOptions.read_only=True, setting ",
    "Given directory is read only=",
)
"""What Orbax 0.12 warns of whenever a directory is opened read-only, as jaxpar asks."""
MOST_CHARACTERS = 500
ALSO_RAISED = (
    "_SignalingThread.run() raised an exception",
    "in background save thread",
    "Save Finalize thread",
    "Failed to write metadata",
    "exception was never retrieved",
)
"""Of log records: of errors that the next call of Orbax's manager raises, too."""


def shorten() -> None:
    """Makes each of the library's warnings a line, and drops those of every call."""
    # A filter that is there already is not added again.
    logging.getLogger(LOGGER).addFilter(_as_one_line)


def hide_raised_errors() -> None:
    """Keeps Orbax's errors that are also raised from being logged with tracebacks."""
    for name in (LOGGER, "asyncio"):
        logging.getLogger(name).addFilter(_is_news)
    hook = sys.unraisablehook
    if getattr(hook, "func", None) is not _report_unraisable:
        sys.unraisablehook = functools.partial(_report_unraisable, hook)


def _report_unraisable(report: Callable[[Any], Any], unraisable: Any) -> None:
    """Reports an error that nothing can raise, but none of a write that was given up.

    Once one array has failed, Orbax closes the loop in which others are written.
    """
    error, where = unraisable.exc_value, unraisable.object
    if where is not None or str(error) != "Event loop is closed":
        report(unraisable)


def _is_news(record: logging.LogRecord) -> bool:
    if not record.exc_info:
        return True
    frames = traceback.walk_tb(record.exc_info[2])
    files = " ".join(frame.f_code.co_filename for frame, _ in frames)
    message = record.getMessage()
    if record.name == "asyncio" and "orbax" not in message + files:
        return True
    return not any(text in message for text in ALSO_RAISED)


def _as_one_line(record: logging.LogRecord) -> bool:
    if record.levelno > logging.WARNING:
        return True
    message = " ".join(record.getMessage().split())
    if message.startswith(OF_EVERY_CALL):
        return False
    if len(message) > MOST_CHARACTERS:
        message = message[: MOST_CHARACTERS - 3] + "..."
    record.msg, record.args = message, None
    # A traceback would follow the line.
    record.exc_info = record.exc_text = record.stack_info = None
    return True
