"""A long text that stays in its file, of which slices are read."""

import os
import pathlib

from jaxpar.errors import UserError


class FileText:
    """Bytes `start:stop` of a file, like a `bytes` of which only slices are in memory.

    The file stays open. It is read, not mapped: one that is cut short meanwhile is an
    error, not a signal.
    """

    def __init__(self, path: pathlib.Path, start: int, stop: int):
        self.path, self._start, self._stop = path, start, stop
        try:
            self._file = open(path, "rb", buffering=0)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}.") from error

    def __len__(self) -> int:
        return self._stop - self._start

    def __getitem__(self, where: slice) -> bytes:
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise IndexError(f"Bytes are read one after another, not in steps: {step}.")
        place, parts = self._start + start, []
        left = max(stop - start, 0)
        while left:
            try:
                block = os.pread(self._file.fileno(), left, place)
            except OSError as error:
                why = f"{self.path} cannot be read: {error.strerror}."
                raise UserError(why) from error
            if not block:
                raise UserError(
                    f"{self.path} has become shorter while it was read: it ends at "
                    f"byte {place}; run the same command again."
                )
            parts.append(block)
            place, left = place + len(block), left - len(block)
        return parts[0] if len(parts) == 1 else b"".join(parts)
