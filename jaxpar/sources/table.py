"""The table of all kinds of source, by how `--data.source` spells them."""

from jaxpar.errors import UserError
from jaxpar.sources.corpus import DIVIDED, Corpus
from jaxpar.sources.files import matching
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
    "files:*.parquet": ParquetFiles,
}
"""A word, with a colon where a name follows; files by what their names end in."""
FILES = "files:"
AS_PLAIN_TEXT = ""
"""As `text_field`: files are read as plain text, whatever their names end in."""


def open_source(
    source: str, *, text_field: str = "text", parts: tuple[str, ...] = DIVIDED
) -> Corpus:
    """The source that a text such as "files:*.txt" names.

    Raises:
      UserError: there is no such kind, or a glob finds files of several kinds.
    """
    kind, name = find_kind(source, text_field=text_field)
    return kind(name, source=source, text_field=text_field, parts=parts)


def find_kind(source: str, *, text_field: str = "text") -> tuple[type[Corpus], str]:
    """The class of a source, and the name that is left for it."""
    word, colon, name = source.partition(":")
    key = word + colon
    if key not in SOURCES or bool(colon) != bool(name):
        raise UserError(
            f"Unknown source {source!r}; choose stdlib, synthetic, files:GLOB or "
            "tfds:NAME."
        )
    if key == FILES and text_field != AS_PLAIN_TEXT:
        key = _kind_of_files(source, name)
    return SOURCES[key], name


def _kind_of_files(source: str, pattern: str) -> str:
    """One kind for all files that a glob finds."""
    found: dict[str, str] = {}
    for name, path in sorted(matching(pattern).items()):
        key = f"{FILES}*{path.suffix.lower()}"
        found.setdefault(key if key in SOURCES else FILES, name)
    if len(found) > 1:
        raise UserError(
            f"{source} finds files of several kinds ({', '.join(found.values())}); "
            "name one kind, as in files:texts/*.jsonl, or read all of them as plain "
            'text with --data.text-field "".'
        )
    return next(iter(found))
