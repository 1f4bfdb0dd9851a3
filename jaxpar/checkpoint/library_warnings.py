"""Warnings of the checkpoint library: a line each, and without those of every call."""

import logging

LOGGER = "absl"
"""The logger that Orbax, and other libraries of Google's, write to."""
OF_EVERY_CALL = (
    "CheckpointManagerOptions.read_only=True, setting ",
    "Given directory is read only=",
)
"""What Orbax 0.12 warns of whenever a directory is opened read-only, as jaxpar asks."""
MOST_CHARACTERS = 500


class OneLine(logging.Filter):
    """Drops the warnings of every call, and shortens each other one to a line."""

    def filter(self, record: logging.LogRecord) -> bool:
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


def shorten() -> None:
    """Puts the filter on the library's logger; more than once is the same as once."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(each, OneLine) for each in logger.filters):
        logger.addFilter(OneLine())
