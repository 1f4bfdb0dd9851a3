"""The registry of all kinds of source, by how an experiment spells them."""

import pathlib

from jaxpar.errors import UserError
from jaxpar.sources import json_records
from jaxpar.sources.corpus import TRAIN_AND_HELDOUT, Corpus
from jaxpar.sources.files import matching, say_once
from jaxpar.sources.jsonl import JsonLines
from jaxpar.sources.parquet import ParquetFiles
from jaxpar.sources.stdlib import StandardLibrary
from jaxpar.sources.synthetic import Synthetic
from jaxpar.sources.text_files import TextFiles
from jaxpar.sources.tfds import PreparedDataset

SOURCES: dict[str, type[Corpus]] = {
    "stdlib": StandardLibrary,
    "synthetic": Synthetic,
    "tfds:": PreparedDataset,
    "files:": TextFiles,
    "files:*.jsonl": JsonLines,
    "files:*.ndjson": JsonLines,
    "files:*.json": JsonLines,
    "files:*.parquet": ParquetFiles,
}
"""By a word, with a colon where a name follows; files by what their names end in.

A file whose name ends in none of these is read as JSON, too, if it begins with records
of JSON: with an object on each of its first lines, or with an array of objects.
"""
FILES = "files:"
AS_PLAIN_TEXT = ""
"""As `text_field`: files are read as plain text, whatever their names end in."""


def open_source(
    source: str,
    *,
    text_field: str = "text",
    parts: tuple[str, ...] = TRAIN_AND_HELDOUT,
) -> Corpus:
    """The source that a text such as "files:*.txt" names; see Corpus.__init__.

    Raises:
      UserError: there is no such kind, or a glob finds files of several kinds.
    """
    kind, name = find_kind(source, text_field=text_field)
    return kind(name, source=source, text_field=text_field, parts=parts)


def find_kind(source: str, *, text_field: str = "text") -> tuple[type[Corpus], str]:
    """The class of a source, and what follows the kind's word.

    Raises:
      UserError: there is no such kind, or a glob finds files of several kinds.
    """
    word, colon, name = source.partition(":")
    key = word + colon
    if key not in SOURCES or bool(colon) != bool(name):
        raise UserError(
            f"Unknown source {source!r}; choose stdlib, synthetic, files:GLOB or "
            "tfds:NAME."
        )
    if key == FILES and text_field != AS_PLAIN_TEXT:
        return _kind_of_files(source, name), name
    return SOURCES[key], name


def named_as_records(source: str) -> bool:
    """Whether files were read as records in format 2 of config.json, by their names.

    Raises:
      UserError: there are no such files.
    """
    suffixes = {path.suffix.lower() for path in matching(source[len(FILES) :]).values()}
    return not suffixes.isdisjoint((".jsonl", ".parquet"))


def _kind_of_files(source: str, pattern: str) -> type[Corpus]:
    """The one kind that all files of a glob have; empty ones have that of the others.

    Raises:
      UserError: they have several kinds.
    """
    first_files: dict[type[Corpus], str] = {}
    unnamed = None
    for name, path in sorted(matching(pattern).items()):
        kind = SOURCES.get(f"{FILES}*{path.suffix.lower()}") or _kind_by_content(path)
        if kind is JsonLines and f"{FILES}*{path.suffix.lower()}" not in SOURCES:
            unnamed = unnamed or name
        if kind:
            first_files.setdefault(kind, name)
    if len(first_files) > 1:
        names = ", ".join(first_files.values())
        why = f"; {unnamed} begins with records of JSON" if unnamed else ""
        raise UserError(
            f"{source} finds files of several kinds ({names}{why}); "
            "name one kind, as in files:texts/*.jsonl, or read all of them as plain "
            'text with --data.text-field "".'
        )
    if unnamed:
        say_once(
            f"{source}: {unnamed} begins with records of JSON, and is read as such; "
            '--data.text-field "" reads it as plain text.'
        )
    return next(iter(first_files), TextFiles)


def _kind_by_content(path: pathlib.Path) -> type[Corpus] | None:
    """JsonLines for records of JSON, else TextFiles; None for an empty file."""
    try:
        if not path.stat().st_size:
            return None
    except OSError:  # Whoever reads the file says what is wrong.
        return TextFiles
    form = json_records.form_of(path)
    return JsonLines if form in (json_records.LINES, json_records.ARRAY) else TextFiles
