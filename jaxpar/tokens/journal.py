"""A journal of how far growing files are, so that another process can go on."""

import json
import os
import pathlib
from typing import Any


class Journal:
    """Lines of JSON, each on the disk before `add` returns."""

    def __init__(self, path: pathlib.Path):
        self.path = path

    def last(self) -> dict[str, Any] | None:
        """The last whole line; None where there is none."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return None
        # What stands after the last line end was not written to its end.
        for line in reversed(lines[:-1]):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                return entry
        return None

    def add(self, entry: dict[str, Any]) -> None:
        """Appends a line."""
        with open(self.path, "ab") as file:
            # Ends what another process may have left half-written.
            file.write(b"\n" + json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
