"""Token files, read as windows of a fixed length."""

import abc
import dataclasses
from typing import NamedTuple, Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Window:
    """T + 1 tokens: the T tokens of a row, and the target of the last one."""

    tokens: np.ndarray
    """Ids (int32)."""
    segments: np.ndarray
    """Number of each token's document, from 1 (int32); 0 is padding."""
    positions: np.ndarray
    """Position of each token in its document's part of the window, from 0 (int32)."""
    weights: np.ndarray
    """Weight of each token as a target, 0 where it is not scored (float32)."""


class Items(NamedTuple):
    """Where the items of a token file are; each array is int64 [items]."""

    ends: np.ndarray
    """The token after the last one of each item."""
    prompts: np.ndarray
    """Tokens of each item before its answer, its beginning included."""
    sizes: np.ndarray
    """Bytes of each item's answer."""


class Ids(Protocol):
    """A sequence of token ids, of which slices are read: an array, or a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, where: slice, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """Items one after another: each is begin, prompt, answer, end.

    A plain document has an empty prompt. `ends`, `prompts` and `sizes` are as in Items.
    """

    tokens: Ids
    ends: np.ndarray
    prompts: np.ndarray
    sizes: np.ndarray
    pad_id: int
    xz_nats_per_byte: float | None
    """What xz -9 needs for the text; None where it was not tried."""

    @property
    def starts(self) -> np.ndarray:
        """The first token of each item."""
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)


class Windows(abc.ABC):
    """A numbered sequence of windows, and counts over all of them."""

    n_bytes: int
    """Bytes of text that are scored."""
    n_tokens: int
    """Tokens that are scored."""
    xz_nats_per_byte: float | None
    """What xz -9 needs for the text; None where it was not tried."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of windows."""

    @abc.abstractmethod
    def __getitem__(self, i: int) -> Window:
        """Window i; IndexError outside of 0 to len - 1."""


class Stream(Windows):
    """Windows that overlap by one token, so that each is a target exactly once."""

    def __init__(self, file: TokenFile, seq_len: int, n_windows: int):
        self._file, self._starts = file, file.starts
        self._seq_len, self._n = seq_len, n_windows
        used = min(len(file.tokens), n_windows * seq_len + 1)
        scored = np.minimum(file.ends, used) - (self._starts + file.prompts)
        self.n_tokens = int(np.maximum(scored, 0).sum())
        self.n_bytes = int(file.sizes.sum())
        self.xz_nats_per_byte = file.xz_nats_per_byte

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> Window:
        if not 0 <= i < self._n:
            raise IndexError(f"Window {i} of {self._n}.")
        file, first = self._file, i * self._seq_len
        tokens = file.tokens[first : first + self._seq_len + 1]
        places = np.arange(first, first + len(tokens))
        item = np.searchsorted(file.ends, places, "right")
        place_in_item = places - self._starts[item]
        width, positions = self._seq_len + 1, np.minimum(place_in_item, places - first)
        return Window(
            tokens=_padded(tokens, width, np.int32, file.pad_id),
            segments=_padded(item - item[0] + 1, width, np.int32),
            positions=_padded(positions, width, np.int32),
            weights=_padded(place_in_item >= file.prompts[item], width, np.float32),
        )


class Rows(Windows):
    """One item in each window; a prompt that is too long for it loses its middle.

    `n_cut` counts those, `n_left_out` the items whose answer alone does not fit.
    """

    def __init__(self, file: TokenFile, seq_len: int):
        self._file, self._starts = file, file.starts
        self._width = seq_len + 1
        lengths = file.ends - self._starts
        answers = lengths - file.prompts
        self._kept = np.flatnonzero(answers < self._width)
        self.n_left_out = len(lengths) - len(self._kept)
        self.n_cut = int((lengths[self._kept] > self._width).sum())
        self.n_tokens = int(answers[self._kept].sum())
        self.n_bytes = int(file.sizes[self._kept].sum())
        self.xz_nats_per_byte = None

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, i: int) -> Window:
        if not 0 <= i < len(self):
            raise IndexError(f"Window {i} of {len(self)}.")
        file, item = self._file, self._kept[i]
        prompt = file.prompts[item]
        tokens = file.tokens[self._starts[item] : file.ends[item]]
        room = self._width - (len(tokens) - prompt)
        if prompt > room:
            head, tail = room - room // 2, room // 2
            tokens = np.concatenate([tokens[:head], tokens[prompt - tail :]])
            prompt = room
        places = np.arange(len(tokens))
        return Window(
            tokens=_padded(tokens, self._width, np.int32, file.pad_id),
            segments=_padded(np.ones_like(places), self._width, np.int32),
            positions=_padded(places, self._width, np.int32),
            weights=_padded(places >= prompt, self._width, np.float32),
        )


def full_windows(file: TokenFile, seq_len: int) -> Stream:
    """The windows that are full; the tokens after the last one are not used."""
    return Stream(file, seq_len, max(len(file.tokens) - 1, 0) // seq_len)


def all_windows(file: TokenFile, seq_len: int) -> Stream:
    """Windows with every token; the last one is padded, with weight 0."""
    return Stream(file, seq_len, -(-(len(file.tokens) - 1) // seq_len))


def _padded(values: np.ndarray, width: int, dtype: type, fill: int = 0) -> np.ndarray:
    """Some values, padded on the right."""
    full = np.full(width, fill, dtype)
    full[: len(values)] = values
    return full
