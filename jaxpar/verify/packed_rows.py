"""Rows that give a wrong layout away: packed, padded, unevenly weighted."""

import numpy as np

from jaxpar.data.windows import Window, Windows

DOCUMENTS = 3  # In a row; they end anywhere, so that pieces of rows differ, too.


class Packed(Windows):
    """Random windows, of which each counts another share of its tokens.

    Row 1 counts a single token; `only` names the one (row, target) that counts at all.
    """

    def __init__(
        self,
        *,
        n_rows: int,
        seq_len: int,
        vocab_size: int,
        only: tuple[int, int] | None = None,
    ):
        random = np.random.default_rng(20_260_102)
        self._windows = [
            _window(random, seq_len + 1, vocab_size) for _ in range(n_rows)
        ]
        if n_rows > 1:
            _count_one(self._windows[1], seq_len // 2)
        if only is not None:
            for row, window in enumerate(self._windows):
                _count_one(window, only[1] if row == only[0] else None)
        self.n_tokens = n_rows * seq_len
        self.n_bytes = self.n_tokens
        self.xz_nats_per_byte = None

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, i: int) -> Window:
        return self._windows[i]

    def prompts(self, n: int, longest: int) -> list[list[int]]:
        """Beginnings of the first n rows, of 1 to `longest` tokens in turn."""
        return [self[i].tokens[: 1 + i % longest].tolist() for i in range(n)]


def _window(random: np.random.Generator, width: int, vocab_size: int) -> Window:
    padding = random.integers(0, 1 + width // 8)
    ends = np.sort(random.integers(1, width - padding + 1, DOCUMENTS - 1))
    at = np.arange(width)
    document = np.searchsorted(ends, at, "right")
    starts = np.concatenate([[0], ends])[document]
    real = at < width - padding
    weights = np.where(random.random(width) < 0.5, 0.5, 1.0)
    counted = random.random(width) < random.uniform(0.1, 1.0)
    return Window(
        tokens=random.integers(0, vocab_size, width, dtype=np.int32),
        segments=np.where(real, document + 1, 0).astype(np.int32),
        positions=np.where(real, at - starts, 0).astype(np.int32),
        weights=(weights * counted * real).astype(np.float32),
    )


def _count_one(window: Window, target: int | None) -> None:
    """Only this target counts; it joins the document of the token before it."""
    window.weights[:] = 0.0
    if target is None:
        return
    window.segments[: target + 2] = 1
    window.positions[: target + 2] = np.arange(target + 2)
    window.weights[target + 1] = 1.0
