"""The registry of all kinds of source, by how an experiment spells them."""

import pathlib

from jaxpar.errors import UserError
from jaxpar.files import json_records
from jaxpar.sources.corpus import TRAIN_AND_HELDOUT, Corpus
from jaxpar.sources.delimited import DelimitedFiles
from jaxpar.sources.jsonl import JsonLines
from jaxpar.sources.parquet import ParquetFiles
from jaxpar.sources.patterns import FILES, matching
from jaxpar.sources.saved_dataset import SavedDataset, folder_of
from jaxpar.sources.stdlib import StandardLibrary
from jaxpar.sources.synthetic import Synthetic
from jaxpar.sources.text_files import TextFiles
from jaxpar.sources.tfds import PreparedDataset
from jaxpar.tables import say_once

SOURCES: dict[str, type[Corpus]] = {
    "stdlib": StandardLibrary,
    "synthetic": Synthetic,
    "tfds:": PreparedDataset,
    "files:": TextFiles,
    "files:*.jsonl": JsonLines,
    "files:*.ndjson": JsonLines,
    "files:*.json": JsonLines,
    "files:*.parquet": ParquetFiles,
    "files:*.csv": DelimitedFiles,
    "files:*.tsv": DelimitedFiles,
    "files:*/state.json": SavedDataset,
}
"""By a word, with a colon where a name follows; files by what their names end in.

A file whose name ends in none of these is read as JSON, too, if it begins with records
of JSON: with an object on each of its first lines, or with an array of objects.
"""
Spelling = str | tuple[str, ...]
"""A source; several ones of files are one."""
AS_PLAIN_TEXT = ""
"""As `text_field`: files are read as plain text, whatever their names end in."""


def open_source(
    source: Spelling,
    *,
    text_field: str = "text",
    parts: tuple[str, ...] = TRAIN_AND_HELDOUT,
) -> Corpus:
    """The source that a text such as "files:*.txt" names; see Corpus.__init__.

    Raises:
      UserError: there is no such kind, or a glob finds files of several kinds.
    """
    kind, name = find_kind(source, text_field=text_field)
    return kind(name, source=in_one_text(source), text_field=text_field, parts=parts)


def find_kind(
    source: Spelling, *, text_field: str = "text"
) -> tuple[type[Corpus], str]:
    """The class of a source, and what follows the kind's word.

    Raises:
      UserError: there is no such kind, or a glob finds files of several kinds.
    """
    source = in_one_text(source)
    word, colon, name = source.partition(":")
    key = word + colon
    if key not in SOURCES or bool(colon) != bool(name):
        is_path = pathlib.Path(source).expanduser().exists()
        near = f"; did you mean {FILES}{source}?" if is_path else "."
        raise UserError(
            f"Unknown source {source!r}; choose stdlib, synthetic, files:GLOB or "
            f"tfds:NAME{near}"
        )
    if key == FILES and text_field != AS_PLAIN_TEXT:
        return _kind_of_files(source, name), name
    return SOURCES[key], name


def named_as_records(source: str, number: int = 2) -> bool:
    """Whether an older format of config.json read files as today, by their names.

    Format 2 knew records by .jsonl and .parquet alone; format 3 knew no .csv and .tsv.

    Raises:
      UserError: there are no such files.
    """
    suffixes = {_suffix(name) for name in matching(source[len(FILES) :])}
    if number == 2:
        return not suffixes.isdisjoint((".jsonl", ".parquet"))
    return suffixes.isdisjoint((".csv", ".tsv"))


def in_one_text(source: Spelling) -> str:
    """A source in one text; of several ones, the list of their files.

    Raises:
      UserError: one of several is not of files.
    """
    if isinstance(source, str):
        return source
    if not source or not all(each.startswith(FILES) for each in source):
        raise UserError(f"{source} must be files: each, such as files:a.txt.")
    return FILES + ",".join(each.removeprefix(FILES) for each in source)


def _kind_of_files(source: str, pattern: str) -> type[Corpus]:
    """The one kind that all files of a glob have; empty ones have that of the others.

    Raises:
      UserError: they have several kinds.
    """
    if folder_of(pattern):
        return SavedDataset
    first_files: dict[type[Corpus], str] = {}
    unnamed = None
    for name, path in sorted(matching(pattern).items()):
        kind = SOURCES.get(f"{FILES}*{_suffix(name)}")
        is_named, kind = bool(kind), kind or _kind_by_content(path)
        if kind is JsonLines and not is_named:
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


def _suffix(name: str) -> str:
    return pathlib.PurePath(name).suffix.lower()
