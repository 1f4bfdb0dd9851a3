"""The registry of all kinds of source, by how an experiment spells them."""

from jaxpar.errors import UserError
from jaxpar.sources.corpus import TRAIN_AND_HELDOUT, Corpus
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
"""By a word, with a colon where a name follows; files by what their names end in."""
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
        key = _kind_of_files(source, name)
    return SOURCES[key], name


def _kind_of_files(source: str, pattern: str) -> str:
    """The key of the one kind that all files of a glob have."""
    first_files: dict[str, str] = {}
    for name, path in sorted(matching(pattern).items()):
        key = f"{FILES}*{path.suffix.lower()}"
        first_files.setdefault(key if key in SOURCES else FILES, name)
    if len(first_files) > 1:
        names = ", ".join(first_files.values())
        raise UserError(
            f"{source} finds files of several kinds ({names}); "
            "name one kind, as in files:texts/*.jsonl, or read all of them as plain "
            'text with --data.text-field "".'
        )
    return next(iter(first_files))
