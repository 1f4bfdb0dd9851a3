"""Synthetic documents, drawn from a Markov chain whose entropy is known."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpar import cache
from jaxpar.sources.corpus import EVERY, Corpus, Document, joined, split_by_number

SYMBOLS = np.frombuffer(b"abcdefghijklmno\n", np.uint8)
N_DOCUMENTS, LENGTH = 1_024, 1_024
CONCENTRATION = 0.2  # Of the Dirichlet rows: about 3 likely successors of each symbol.
SEED = 20_260_101


class Synthetic(Corpus):
    """Documents drawn from the chain; needs only NumPy."""

    def documents(self) -> Mapping[str, Sequence[Document]]:
        texts = enumerate(documents())
        parts = split_by_number([Document(str(i), text) for i, text in texts])
        if EVERY in self.parts:
            return {EVERY: joined([parts["train"], parts["heldout"]])}
        return parts

    def fingerprint(self) -> str:
        texts = [text.decode() for text in documents()]
        return cache.key(version=1, texts=texts)

    @property
    def facts(self) -> dict[str, Any]:
        return {"entropy_nats_per_byte": chain().entropy}


@dataclasses.dataclass(frozen=True)
class Chain:
    """A first-order Markov chain over `SYMBOLS`, started in its stationary state."""

    transition: np.ndarray
    """Probability of each next symbol [after, next]."""
    stationary: np.ndarray
    """Probability of each symbol."""

    @property
    def entropy(self) -> float:
        """Entropy of a symbol where the one before it is known, in nats."""
        nats = -np.sum(self.transition * np.log(self.transition), axis=1)
        return float(self.stationary @ nats)


def chain() -> Chain:
    """The chain that all synthetic documents are drawn from."""
    n = len(SYMBOLS)
    draws = np.random.default_rng(SEED).gamma(CONCENTRATION, size=(n, n)) + 1e-6
    transition = draws / draws.sum(axis=1, keepdims=True)
    stationary = np.full(n, 1 / n)
    for _ in range(1_000):
        stationary = stationary @ transition
    return Chain(transition, stationary / stationary.sum())


def documents() -> list[bytes]:
    """N_DOCUMENTS texts of LENGTH bytes, the same on every machine."""
    source, rng = chain(), np.random.default_rng(SEED + 1)
    bounds = np.cumsum(source.transition, axis=1)[:, :-1]
    drawn = np.empty((N_DOCUMENTS, LENGTH), np.int64)
    first = np.cumsum(source.stationary)[:-1]
    drawn[:, 0] = np.searchsorted(first, rng.random(N_DOCUMENTS), "right")
    for t in range(1, LENGTH):
        above = rng.random(N_DOCUMENTS)[:, None] >= bounds[drawn[:, t - 1]]
        drawn[:, t] = above.sum(axis=1)
    return [SYMBOLS[row].tobytes() for row in drawn]
