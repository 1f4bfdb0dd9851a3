"""JSON files that carry a digest of what they say, so that damage is noticed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from jaxpar import atomic
from jaxpar.errors import UserError

SEAL = "sha256"


def json_object(text: str | bytes) -> dict[str, Any]:
    """The object that a JSON text is.

    Raises:
      ValueError: it is none; says what it is.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object ({value!r:.80})")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes an object whole or not at all, with a digest of the rest of it."""
    rest = {name: item for name, item in value.items() if name != SEAL}
    sealed = {**rest, SEAL: _digest(rest)}
    atomic.write_bytes(path, f"{json.dumps(sealed, indent=2)}\n".encode())


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """The object in a file, without its digest; files of older versions have none.

    remedy: what a person can do about a damaged file.

    Raises:
      FileNotFoundError: there is no such file.
      UserError: it is not a JSON object, or its digest does not match.
    """
    try:
        value = json_object(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is {error}. {remedy}") from error
    comma = " and the comma before it" if [*value][-1:] == [SEAL] != [*value] else ""
    seal = value.pop(SEAL, None)
    if seal is not None and seal != _digest(value):
        raise UserError(
            f"{path} is damaged, or was edited: its {SEAL} does not match. "
            f"{remedy} (To keep an edit, remove its line {SEAL}{comma}.)"
        )
    return value


def _digest(value: dict[str, Any]) -> str:
    """Of the meaning: neither white space nor the order of names counts."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
