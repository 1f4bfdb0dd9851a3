"""Errors of reading a step, as one line that names it."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxpar.errors import JaxparError, NoUsableCheckpoint


@contextlib.contextmanager
def named(folder: Path, steps: Callable[[], list[int]]) -> Iterator[None]:
    """A block that reads a step; steps: those that there are.

    Raises:
      NoUsableCheckpoint: the storage library failed, for whatever but lack of memory.
    """
    try:
        yield
    except JaxparError:
        raise
    except Exception as error:  # The storage library raises classes of its own.
        if "RESOURCE_EXHAUSTED" in str(error) or isinstance(error, MemoryError):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise NoUsableCheckpoint(
            f"{folder} cannot be read ({type(error).__name__}: {first[:200]}); there "
            f"are {steps()}. Restore its files, or move it elsewhere to go on from "
            "another step."
        ) from error
