"""Records of JSON: how a file holds them, and the object of each."""

import json
import pathlib
import re
from typing import Any, NamedTuple

from jaxpar.errors import UserError

RECORD_BYTES = 64 << 20
"""A record, or a line with one, of more bytes is refused: it is parsed in memory."""
HEAD_BYTES = 1 << 16
"""So much of a file decides which form it has."""
N_FIRST_LINES = 20
"""So many first lines decide whether a file has an object on each."""
LINES, ARRAY, OBJECT = "lines", "array", "object"
SPACE = " \t\r\n"
BOM = "\ufeff"
BEGINS_OBJECT = re.compile(r'\{\s*"')
BEGINS_ARRAY = re.compile(r'\[\s*\{\s*["}]')
ADVICE = (
    "write an object on each line, or one array of objects; "
    '--data.text-field "" reads the file as plain text'
)


class Record(NamedTuple):
    """The JSON of a record, with its file's name and its line's number there."""

    name: str
    line: int
    text: bytes
    number: int | None = None
    """Of the record in its array, from 1; None where it has a line for itself."""

    @property
    def where(self) -> str:
        """File and line, and number in an array, for messages."""
        if self.number is None:
            return f"{self.name}, line {self.line}:"
        return f"{self.name}, record {self.number} (line {self.line}):"

    def object(self) -> dict[str, Any]:
        """The object that the record is.

        Raises:
          UserError: it is not JSON, or not an object.
        """
        try:
            if self.number is None:
                value = json.loads(self.text)
            else:  # What stands before the next record is read with it.
                value, _ = json.JSONDecoder().raw_decode(self.text.decode())
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.where} is not JSON ({error}); {ADVICE}.") from error
        if not isinstance(value, dict):
            raise UserError(
                f"{self.where} is not an object, but {type(value).__name__}; each "
                'must be one, such as {"text": "..."}.'
            )
        return value


def form_of(path: pathlib.Path) -> str | None:
    """How a file begins: LINES, ARRAY or OBJECT; None where it is no JSON of objects.

    LINES: each of the first lines is an object. ARRAY: the file is an array whose
    first item is an object. OBJECT: the file begins with an object that has several
    lines. A last line that does not end within HEAD_BYTES counts by its beginning.
    """
    try:
        with open(path, "rb") as file:
            raw = file.read(HEAD_BYTES)
    except OSError:  # Whoever reads the file says what is wrong.
        return None
    head = raw.decode("utf-8", "ignore").removeprefix(BOM).lstrip(SPACE)
    if BEGINS_ARRAY.match(head):
        return ARRAY
    if not BEGINS_OBJECT.match(head):
        return None
    lines = [line.strip(SPACE) for line in head.split("\n")]
    last = lines.pop() if len(raw) == HEAD_BYTES else ""
    lines = [line for line in lines if line][:N_FIRST_LINES]
    if all(map(_is_object, lines)) and (not last or BEGINS_OBJECT.match(last)):
        return LINES
    has_object_on_second = len(lines) > 1 and BEGINS_OBJECT.match(lines[1])
    return OBJECT if len(lines) > 1 and not has_object_on_second else None


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
