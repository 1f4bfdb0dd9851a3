"""Corpus: the base class of all kinds of source, and the documents they give."""

import abc
import dataclasses
import functools
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from jaxpar.errors import UserError
from jaxpar.files import split
from jaxpar.files.file_text import FileText
from jaxpar.files.lazy import Lazy

TRAIN_AND_HELDOUT = ("train", "heldout")
EVERY = "every"
WHOLE = (EVERY,)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Document:
    """A text and where it comes from."""

    name: str
    """The file, or the record, for messages."""
    text: "bytes | FileText"
    """In UTF-8; of a long file of plain text it stays in the file."""
    line: int = 1
    """Number of its first line there."""


@dataclasses.dataclass(frozen=True)
class Example:
    """An answer, which is scored, after its prompt; a document has no prompt."""

    answer: "bytes | FileText"
    prompt: bytes = b""


class Corpus(abc.ABC):
    """An opened source: its documents, split into a training and a held-out part.

    Each kind of source is one subclass; `jaxpar.sources.registry` lists them. One
    outside the package has to define `documents` and `fingerprint`.
    """

    source: str = "The source"
    text_field: str = "text"
    parts: tuple[str, ...] = TRAIN_AND_HELDOUT

    def __init__(
        self,
        name: str,
        *,
        source: str,
        text_field: str = "text",
        parts: tuple[str, ...] = TRAIN_AND_HELDOUT,
    ):
        """name: what follows the kind's word, such as a glob or a dataset's name.

        source: how the experiment spells it, for messages. text_field: the field that
        holds the text, where records have fields. parts: TRAIN_AND_HELDOUT, or WHOLE
        for all documents in one part.
        """
        self.name, self.source = name, source
        self.text_field, self.parts = text_field, parts

    @abc.abstractmethod
    def documents(self) -> Mapping[str, Sequence[Document]]:
        """The documents of each part, in a fixed order.

        Raises:
          UserError: they are absent, damaged or not UTF-8, or hold no text.
        """

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal digits that change with any document and with the split.

        They say what was trained on: no version of a library is part of them.
        """

    def versioned_fingerprint(self, versions: Mapping[str, str] | None = None) -> str:
        """The fingerprint as jaxpar 0.1 defined it, and as it names prepared data.

        versions: of the libraries that read the documents, by their names; of any that
        is not given, the installed one. Most kinds of source have no versions in it.
        """
        return self.fingerprint()

    @property
    def has_examples(self) -> bool:
        """Whether the records can be read as prompts with answers."""
        return False

    @property
    def has_only_examples(self) -> bool:
        """Whether the records can be read as prompts with answers, and not as text."""
        return False

    def examples(self, part: str) -> Sequence[Example]:
        """The prompts with answers of one part, where `has_examples`."""
        raise UserError(f"{self.source} holds no prompts with answers.")

    def n_records(self, part: str) -> int:
        """How many records, of which examples are made, a part has."""
        return len(self.by_part.get(part, ()))

    @functools.cached_property
    def by_part(self) -> Mapping[str, Sequence[Document]]:
        """What `documents` returns, called once."""
        return self.documents()

    @property
    def facts(self) -> dict[str, Any]:
        """More that is known of the source, for the receipt."""
        return {}

    @classmethod  # noqa: B027 (most have nothing to fetch)
    def fetch(cls, name: str) -> None:
        """Downloads what is missing; only `jaxpar data prepare` calls it."""


def joined(sequences: Sequence[Sequence[T]]) -> Lazy[T]:
    """Several sequences, one after the other."""

    def read(i: int) -> T:
        for sequence in sequences:
            if i < len(sequence):
                return sequence[i]
            i -= len(sequence)
        raise IndexError(i)

    return Lazy(range(sum(len(sequence) for sequence in sequences)), read)


def parts_of(
    splits: Mapping[str, Sequence[T]],
    parts: tuple[str, ...],
    source: str,
    divided: Callable[[Sequence[T]], dict[str, Sequence[T]]],
) -> dict[str, Sequence[T]]:
    """The parts of a dataset with splits: `validation` is held out, or else `test`.

    divided: makes both parts of the split `train`, where there is neither.

    Raises:
      UserError: there is no split `train` to learn from.
    """
    if parts == WHOLE:
        return {EVERY: joined([*splits.values()])}
    if "train" not in splits:
        raise UserError(
            f"{source} has no examples to learn from: its splits are "
            f"{sorted(splits)}, and `train` is needed."
        )
    for other in ("validation", "test"):
        if other in splits:
            return {"train": splits["train"], "heldout": splits[other]}
    return divided(splits["train"])


def split_by_number(documents: Sequence[Document]) -> dict[str, Sequence[Document]]:
    """The parts `train` and `heldout` of documents that have a number but no path.

    The hash of its number puts a document into the held-out part; where it chooses
    none, because there are few, the end of each document is held out.
    """
    n = len(documents)
    if heldout := held_out_numbers(n):
        read = documents.__getitem__
        train = all_numbers_but(heldout, n)
        return {"train": Lazy(train, read), "heldout": Lazy(heldout, read)}
    head = functools.partial(_cut, documents, keep_head=True)
    tail = functools.partial(_cut, documents, keep_head=False)
    return {"train": Lazy(range(n), head), "heldout": Lazy(range(n), tail)}


def held_out_numbers(n: int) -> Sequence[int]:
    """The numbers below n that their hash holds out; none where n is small."""
    if n < split.ONE_IN:
        return array("q")
    return array("q", (i for i in range(n) if split.held_out(str(i))))


def all_numbers_but(excluded: Sequence[int], n: int) -> Sequence[int]:
    """The numbers below n that are not excluded, in order, in 8 bytes each."""
    without = set(excluded)
    return array("q", (i for i in range(n) if i not in without))


def _cut(documents: Sequence[Document], i: int, *, keep_head: bool) -> Document:
    document = documents[i]
    start = split.tail(document.text)
    kept = slice(0, start) if keep_head else slice(start, None)
    return dataclasses.replace(document, text=document.text[kept])
