"""Records with fields, such as lines of JSON: a text, or a prompt with its answer."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxpar.errors import UserError
from jaxpar.sources.corpus import Example

DEFAULT = "text"
PROMPT, ANSWER = "prompt", "answer"


def holds_examples(names: Sequence[str]) -> bool:
    """Whether records with these fields of text are prompts with answers."""
    return PROMPT in names and ANSWER in names


def choose(wanted: str, names: Sequence[str], where: str, others: Sequence[str]) -> str:
    """The field that holds the text: the wanted one, else the only one there is.

    names: the fields that hold text. others: all the rest, for the message.

    Raises:
      UserError: there is no such field, and more or fewer than one to take instead.
    """
    if wanted in names:
        return wanted
    if wanted == DEFAULT and len(names) == 1:
        return names[0]
    if holds_examples(names):
        hint = (
            "These are prompts with answers: fine-tune on them (Pairs), or name the "
            "field to read as text with --data.text-field."
        )
    else:
        hint = "Name the field to read with --data.text-field."
    raise UserError(
        f"{where} has no text in a field {wanted!r}; it has text in {list(names)}"
        f"{f', no text in {list(others)}' if others else ''}. {hint}"
    )


def text_of(record: Mapping[str, Any], field: str, where: str) -> bytes:
    """The text of one record.

    Raises:
      UserError: the record has no text in this field.
    """
    value = record.get(field)
    if not isinstance(value, str):
        raise UserError(f"{where} has no text {field!r}, only {sorted(record)}.")
    return value.encode("utf-8", "replace")


def example_of(record: Mapping[str, Any], where: str) -> Example:
    """The prompt and answer of one record.

    Raises:
      UserError: one of them is missing, or is not a text.
    """
    for name in (PROMPT, ANSWER):
        if not isinstance(record.get(name), str):
            raise UserError(
                f"{where} has no text {name!r}, only {sorted(record)}; each must be an "
                'object such as {"prompt": "...", "answer": "..."}.'
            )
    return Example(
        answer=text_of(record, ANSWER, where), prompt=text_of(record, PROMPT, where)
    )
