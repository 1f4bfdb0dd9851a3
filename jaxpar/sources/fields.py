"""Fields of records, shared by JSON, tables and TFDS: which holds the text."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxpar.errors import UserError
from jaxpar.sources.corpus import Example

DEFAULT = "text"
PROMPT, ANSWER = "prompt", "answer"


def holds_examples(names: Sequence[str]) -> bool:
    """Whether records with these fields of text are prompts with answers."""
    return PROMPT in names and ANSWER in names


def text_field_of(
    wanted: str, names: Sequence[str], where: str, others: Sequence[str], more: str = ""
) -> str:
    """The field that holds the text: the wanted one, else the only one there is.

    names: the fields that hold text. where: the file or directory, and others: the
    rest of the fields, for the message, which ends with `more`.

    Raises:
      UserError: no such field holds text, and not exactly one other does; or another
        one than `text` was asked for.
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
        f"{f', no text in {list(others)}' if others else ''}. {hint}{more}"
    )


def text_of(record: Mapping[str, Any], field: str, where: str, hint: str = "") -> bytes:
    """The text of one record, in UTF-8.

    Raises:
      UserError: the record has no text in this field (`hint` ends the message), or one
        with half of a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    value = record.get(field)
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{where} has the character {value[error.start]!a} at place "
                f"{error.start} of {field!r}: half of a surrogate pair, which UTF-8 "
                "cannot keep. Write the whole pair, or leave it out."
            ) from error
    if field not in record:
        reason = f"only {sorted(record)}"
    else:
        reason = f"but {'null' if value is None else type(value).__name__}"
    raise UserError(f"{where} has no text {field!r}, {reason}{hint}.")


def example_of(record: Mapping[str, Any], where: str) -> Example:
    """The prompt and answer of one record.

    Raises:
      UserError: one of them is missing, or is not a text.
    """
    hint = '; each must be an object such as {"prompt": "...", "answer": "..."}'
    prompt = text_of(record, PROMPT, where, hint)
    return Example(answer=text_of(record, ANSWER, where, hint), prompt=prompt)
