"""What is held out, in words, and which of it is also to train on."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpar.sources.corpus import Example, Lazy

HASH_BYTES = 8
NOT_READ = 0


class BothParts:
    """Counts held-out items that are to train on, too, by a hash of each one's bytes.

    It takes 8 bytes of memory for each item.
    """

    def __init__(self):
        self._hashes: dict[str, np.ndarray] = {}

    def watched(self, part: str, items: Sequence[Example]) -> Sequence[Example]:
        """The items of a part; the hash of each is kept when it is read."""
        hashes = np.full(len(items), NOT_READ, np.uint64)
        self._hashes[part] = hashes

        def read(i: int) -> Example:
            item = items[i]
            hashes[i] = _hash(item)
            return item

        return Lazy(range(len(items)), read)

    def count(self) -> int:
        """Items of the part `heldout` that are in `train`, of those that were read."""
        if not {"train", "heldout"} <= self._hashes.keys():
            return 0
        held = self._hashes["heldout"]
        return int(np.isin(held[held != NOT_READ], self._hashes["train"]).sum())


def _hash(item: Example) -> int:
    if not item.answer:
        return NOT_READ
    digest = hashlib.blake2b(item.prompt, digest_size=HASH_BYTES)
    # So that no other cut between prompt and answer gives the same bytes.
    digest.update(len(item.prompt).to_bytes(8, "big"))
    digest.update(item.answer)
    return int.from_bytes(digest.digest(), "big")


def in_words(description: Mapping[str, Any]) -> str:
    """How much of a source is to train on and how much is held out, for stderr.

    description: as of Prepared.
    """
    train, held = (_sizes(description[part]) for part in ("train", "heldout"))
    how = description.get("held_out")
    text = (
        f"{description['source']}: {train} to train on, {held} held out"
        f"{f' ({how})' if how else ''}."
    )
    if n := description.get("in_both_parts"):
        text += (
            f" {n:,} of those held out are also to train on, byte by byte, and flatter "
            "the held-out loss: remove duplicates from the source."
        )
    return text


def _sizes(part: Mapping[str, int]) -> str:
    n = part.get("documents")
    what = "documents" if n is not None else "examples"
    return f"{part['windows'] if n is None else n:,} {what} ({part['bytes']:,} bytes)"
