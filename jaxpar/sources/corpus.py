"""What every kind of source gives: documents in parts, with a fingerprint of them."""

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from jaxpar.errors import UserError
from jaxpar.sources import split

DIVIDED = ("train", "heldout")
WHOLE = ("every",)
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Document:
    """One document; its first line is line number `line` of what is called `name`."""

    name: str
    text: bytes
    line: int = 1


@dataclasses.dataclass(frozen=True)
class Example:
    """An answer, which is scored, after its prompt; a document has no prompt."""

    answer: bytes
    prompt: bytes = b""


class Corpus(abc.ABC):
    """A source opened: its documents, in a part to train on and a part held out.

    Each kind of source is one such class; `jaxpar.sources.table` lists them. One
    outside the package has to give `documents` and `fingerprint`.
    """

    source: str = "The source"
    text_field: str = "text"
    parts: tuple[str, ...] = DIVIDED

    def __init__(
        self,
        name: str,
        *,
        source: str,
        text_field: str = "text",
        parts: tuple[str, ...] = DIVIDED,
    ):
        """name: what stands after the kind's word, such as a glob or a dataset's name.

        source: how the experiment spells it, for messages. text_field: the field that
        holds the text, where records have fields. parts: DIVIDED, or WHOLE for all
        documents in one part.
        """
        self.name, self.source = name, source
        self.text_field, self.parts = text_field, parts

    @abc.abstractmethod
    def documents(self) -> Mapping[str, Sequence[Document]]:
        """The documents of each part, in a fixed order.

        Raises:
          UserError: they are absent, damaged or not UTF-8.
        """

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal digits that change with any document and with the split."""

    @property
    def has_examples(self) -> bool:
        """Whether the records can be read as prompts with answers."""
        return False

    @property
    def has_only_examples(self) -> bool:
        """Whether they can be read as nothing else."""
        return False

    def examples(self, part: str) -> Sequence[Example]:
        """The prompts with answers of one part, where `has_examples`."""
        raise UserError(f"{self.source} holds no prompts with answers.")

    def n_records(self, part: str) -> int:
        """How many documents or examples a part has."""
        return len(self.by_part.get(part, ()))

    @functools.cached_property
    def by_part(self) -> Mapping[str, Sequence[Document]]:
        """What `documents` gave, once."""
        return self.documents()

    @property
    def facts(self) -> dict[str, Any]:
        """More that is known of the source, for the receipt."""
        return {}

    @classmethod
    def fetch(cls, name: str) -> None:
        """Downloads what is not here yet; `jaxpar data prepare` alone asks for it."""


class Lazy(Sequence[T]):
    """A sequence whose items are read when they are asked for."""

    def __init__(self, indices: Sequence[int], read: Callable[[int], T]):
        self._indices, self._read = indices, read

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, i: Any) -> Any:
        return self._read(self._indices[i])


class Joined(Sequence[T]):
    """Several sequences, one after the other."""

    def __init__(self, sequences: Sequence[Sequence[T]]):
        self._sequences = sequences

    def __len__(self) -> int:
        return sum(len(sequence) for sequence in self._sequences)

    def __getitem__(self, i: Any) -> Any:
        for sequence in self._sequences:
            if i < len(sequence):
                return sequence[i]
            i -= len(sequence)
        raise IndexError(i)


def divide(documents: Sequence[Document]) -> dict[str, Sequence[Document]]:
    """Parts of documents that have a number and no path.

    Held out are those that the hash of their number chooses; of too few documents, the
    end of each.
    """
    out = chosen_numbers(len(documents))
    if out:
        rest = [i for i in range(len(documents)) if i not in out]
        read = documents.__getitem__
        return {"train": Lazy(rest, read), "heldout": Lazy(sorted(out), read)}
    every = range(len(documents))
    head = functools.partial(_cut, documents, keep_head=True)
    tail = functools.partial(_cut, documents, keep_head=False)
    return {"train": Lazy(every, head), "heldout": Lazy(every, tail)}


def chosen_numbers(n: int) -> set[int]:
    """The documents of n that the hash of their number holds out; none of too few."""
    held = {i for i in range(n) if split.held_out(str(i))}
    return held if n >= split.ONE_IN else set()


def _cut(documents: Sequence[Document], i: int, *, keep_head: bool) -> Document:
    document = documents[i]
    at = split.tail(document.text)
    kept = slice(0, at) if keep_head else slice(at, None)
    return dataclasses.replace(document, text=document.text[kept])
