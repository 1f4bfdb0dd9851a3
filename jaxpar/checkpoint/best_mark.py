"""The mark of the best step, for one that was saved before it was evaluated."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from jaxpar import atomic
from jaxpar.guard.sealed_json import json_object
from jaxpar.partition import cluster
from jaxpar.tables import for_messages

NAME = "best.json"


class BestMark:
    """A handle on best.json, beside the steps: which of them was found to be the best.

    It stands beside the marks that steps carry themselves. A damaged file is ignored
    with a warning.
    """

    step: int | None
    """The marked step; None where there is no mark."""

    def __init__(self, directory: Path, *, shared: bool):
        """shared: every process opens it, and is to see what process 0 sees."""
        self._path = directory / NAME
        self.step = self._read() if cluster.is_first() or not shared else None
        if shared:
            self.step = cluster.broadcast(self.step)

    def put(self, step: int) -> None:
        """Marks a step instead of the one that was marked before.

        Raises:
          OSError: the file cannot be written.
        """
        if cluster.is_first():
            text = json.dumps({"step": step, "digest": _digest(step)})
            atomic.write_bytes(self._path, text.encode())
        self.step = step

    def forget_unless_of(self, steps: Collection[int]) -> None:
        """Takes the mark back if its step is none of these: it may be trained again.

        Raises:
          OSError: the file cannot be removed.
        """
        if self.step is None or self.step in steps:
            return
        self.step = None
        if cluster.is_first():
            self._path.unlink(missing_ok=True)

    def _read(self) -> int | None:
        try:
            item = json_object(self._path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            return self._ignore(str(error))
        step = item.get("step")
        if type(step) is not int or item.get("digest") != _digest(step):
            return self._ignore("not what jaxpar has written there")
        return step

    def _ignore(self, why: str) -> None:
        print(
            f"{self._path} is damaged ({why}), so it marks no step as the best; the "
            "marks of the steps themselves stand.",
            file=for_messages(),
        )


def _digest(step: int) -> str:
    return hashlib.sha256(f"best step {step}".encode()).hexdigest()[:16]
