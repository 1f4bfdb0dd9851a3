"""Counts held-out items that also occur in the training part."""

import hashlib
from collections.abc import Iterable

import numpy as np

HASH_BYTES = 8
NO_HASH = 0
"""Of an item that has no answer."""


class ItemHash:
    """A hash of an item's bytes, which come one after another."""

    def __init__(self, prompt: bytes):
        self._digest = hashlib.blake2b(prompt, digest_size=HASH_BYTES)
        # So that no other cut between prompt and answer gives the same bytes.
        self._digest.update(len(prompt).to_bytes(8, "big"))
        self._is_empty = True

    def update(self, answer: bytes) -> None:
        """Adds bytes of the answer."""
        self._digest.update(answer)
        self._is_empty = self._is_empty and not answer

    def value(self) -> int:
        """The hash of all bytes so far; NO_HASH of an item without an answer."""
        if self._is_empty:
            return NO_HASH
        return int.from_bytes(self._digest.digest(), "big")


def count_in_both(train: Iterable[np.ndarray], heldout: np.ndarray) -> int:
    """How many held-out items are also to train on, by the hashes (uint64) of both.

    train: in blocks, of which one is in memory at a time.
    """
    held, n = np.unique(heldout[heldout != NO_HASH], return_counts=True)
    found = np.zeros(len(held), bool)
    for block in train if len(held) else ():
        places = np.minimum(np.searchsorted(held, block), len(held) - 1)
        found[places[held[places] == block]] = True
    return int(n[found].sum())
