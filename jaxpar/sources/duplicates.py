"""Counts held-out items that also occur in the training part."""

import hashlib
from collections.abc import Sequence

import numpy as np

from jaxpar.sources.corpus import Example, Lazy

HASH_BYTES = 8
NO_HASH = 0
"""Of an item that was not read, or that has no answer."""


class CountInBothParts:
    """Counts them by a hash of each item's bytes, which takes 8 bytes of memory."""

    def __init__(self):
        self._hashes: dict[str, np.ndarray] = {}

    def watched(self, part: str, items: Sequence[Example]) -> Sequence[Example]:
        """The items of a part; the hash of each is kept when it is read."""
        hashes = np.full(len(items), NO_HASH, np.uint64)
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
        return int(np.isin(held[held != NO_HASH], self._hashes["train"]).sum())


def _hash(item: Example) -> int:
    if not item.answer:
        return NO_HASH
    digest = hashlib.blake2b(item.prompt, digest_size=HASH_BYTES)
    # So that no other cut between prompt and answer gives the same bytes.
    digest.update(len(item.prompt).to_bytes(8, "big"))
    digest.update(item.answer)
    return int.from_bytes(digest.digest(), "big")
