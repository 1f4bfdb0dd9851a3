"""Items of a corpus in units of work: texts that are tokenised in one call."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from jaxpar.tokens.duplicates import ItemHash
from jaxpar.tokens.pieces import LongText, pieces

UNIT_BYTES = 1_000_000
"""Items together; a longer one is alone, with one piece of its answer in each unit."""


class Item(Protocol):
    """A prompt and its answer, as jaxpar.sources.corpus.Example."""

    @property
    def prompt(self) -> bytes: ...
    @property
    def answer(self) -> LongText: ...


class Share(NamedTuple):
    """What a unit holds of one item."""

    n_prompt: int
    """Texts of its prompt."""
    n_answer: int
    """Texts of its answer."""
    is_begun: bool
    """Whether the item was begun by another unit."""
    size: int
    """Bytes of its answer."""
    hash: int | None
    """Of its bytes; None where the next unit goes on with it."""


class Place(NamedTuple):
    """Where a unit ends: after some items, and some bytes of the next one's answer."""

    n_items: int
    offset: int = 0


BEGINNING = Place(0)


class Unit(NamedTuple):
    """Texts, the items that they are of, and how far one is with them."""

    texts: list[bytes]
    shares: list[Share]
    stop: Place
    done: float
    """Items before `stop`, with the part of one that is begun."""


def units(items: Sequence[Item], start: Place = BEGINNING) -> Iterator[Unit]:
    """The items from a place on, which is where another unit has ended."""
    texts, shares, size = [], [], 0
    for i in range(start.n_items, len(items)):
        item = items[i]
        added = len(item.prompt) + len(item.answer)
        if shares and size + added > UNIT_BYTES:
            yield Unit(texts, shares, Place(i), float(i))
            texts, shares, size = [], [], 0
        if added > UNIT_BYTES:
            yield from _alone(item, i, start.offset if i == start.n_items else 0)
            continue
        prompt, answer = [*pieces(item.prompt)], [*pieces(item.answer)]
        digest = ItemHash(item.prompt)
        for text in answer:
            digest.update(text)
        n = len(item.answer)
        shares.append(Share(len(prompt), len(answer), False, n, digest.value()))
        texts += prompt + answer
        size += added
    if shares:
        yield Unit(texts, shares, Place(len(items)), float(len(items)))


def _alone(item: Item, i: int, offset: int) -> Iterator[Unit]:
    """The units of one long item, number i; the first `offset` bytes were in others."""
    size, digest = len(item.answer), ItemHash(item.prompt)
    for start in range(0, offset, UNIT_BYTES):
        digest.update(item.answer[start : min(start + UNIT_BYTES, offset)])
    prompt = [] if offset else [*pieces(item.prompt)]
    # An answer without bytes is begun and ended all the same.
    answer = pieces(item.answer, offset) if size else [b""]
    for text in answer:
        digest.update(text)
        is_begun, offset = offset > 0, offset + len(text)
        is_last = offset == size
        texts = prompt + [text] if text else prompt
        value = digest.value() if is_last else None
        share = Share(len(prompt), len(texts) - len(prompt), is_begun, size, value)
        stop = Place(i + 1) if is_last else Place(i, offset)
        yield Unit(texts, [share], stop, i + offset / max(size, 1))
        prompt = []
