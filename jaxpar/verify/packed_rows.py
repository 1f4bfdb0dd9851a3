"""Test rows on which a wrong layout shows: packed, padded and unevenly weighted."""

import numpy as np

from jaxpar.data.windows import Window, Windows

DOCUMENTS = 3
"""Documents in a row. Their ends are random, so that pieces of rows differ, too."""
SEED = 20_260_102


class Packed(Windows):
    """Random windows, each with another fraction of its tokens counted in the loss.

    Row 1 counts a single token. only: the one (row, target) that counts at all.
    """

    def __init__(
        self,
        *,
        n_rows: int,
        seq_len: int,
        vocab_size: int,
        only: tuple[int, int] | None = None,
    ):
        random = np.random.default_rng(SEED)
        self._windows = [
            _random_window(random, seq_len + 1, vocab_size) for _ in range(n_rows)
        ]
        if n_rows > 1:
            _count_only(self._windows[1], seq_len // 2)
        if only is not None:
            for row, window in enumerate(self._windows):
                _count_only(window, only[1] if row == only[0] else None)
        self.n_tokens = n_rows * seq_len
        self.n_bytes = self.n_tokens
        self.xz_nats_per_byte = None

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, i: int) -> Window:
        return self._windows[i]

    def prompts(self, n: int, longest: int) -> list[list[int]]:
        """The first tokens of the first n rows: 1, 2, ... up to `longest` of them."""
        return [self[i].tokens[: 1 + i % longest].tolist() for i in range(n)]


def _random_window(random: np.random.Generator, width: int, vocab_size: int) -> Window:
    padding = random.integers(0, 1 + width // 8)
    ends = np.sort(random.integers(1, width - padding + 1, DOCUMENTS - 1))
    index = np.arange(width)
    document = np.searchsorted(ends, index, "right")
    starts = np.concatenate([[0], ends])[document]
    is_token = index < width - padding
    weights = np.where(random.random(width) < 0.5, 0.5, 1.0)
    counted = random.random(width) < random.uniform(0.1, 1.0)
    return Window(
        tokens=random.integers(0, vocab_size, width, dtype=np.int32),
        segments=np.where(is_token, document + 1, 0).astype(np.int32),
        positions=np.where(is_token, index - starts, 0).astype(np.int32),
        weights=(weights * counted * is_token).astype(np.float32),
    )


def _count_only(window: Window, target: int | None) -> None:
    """Gives this target alone a weight; all tokens up to it become one document."""
    window.weights[:] = 0.0
    if target is None:
        return
    window.segments[: target + 2] = 1
    window.positions[: target + 2] = np.arange(target + 2)
    window.weights[target + 1] = 1.0
