"""Formats of checkpoints: how the JSON of older ones is upgraded."""

from collections.abc import Callable
from typing import Any

from jaxpar.errors import NoUsableCheckpoint

FORMAT = 2
"""The format that is written; a checkpoint without a number is of format 1."""


def upgraded(item: dict[str, Any], where: object) -> dict[str, Any]:
    """A checkpoint's JSON item in today's format, without the format number.

    where: the checkpoint's path, for the error message.

    Raises:
      NoUsableCheckpoint: the format is newer, or its number is no positive integer.
    """
    number = item.get("format", 1)
    if type(number) is not int or not 1 <= number <= FORMAT:
        raise NoUsableCheckpoint(
            f"{where} is a checkpoint of format {number!r}; this version of jaxpar "
            f"reads formats 1 to {FORMAT}. Open it with a newer jaxpar."
        )
    for older in range(number, FORMAT):
        item = UPGRADES[older](item)
    return {key: value for key, value in item.items() if key != "format"}


# Format 2 only adds the number itself.
UPGRADES: dict[int, Callable[[dict], dict]] = {1: lambda item: item}
"""For each older format, the function from its JSON item to that of the next one."""
