"""Token files, read as windows of a fixed length."""

import abc
import dataclasses
import json
import pathlib

import numpy as np

from jaxpar import cache
from jaxpar.errors import UserError

CHECKED_BYTES = 1 << 30
"""Token files up to this size are hashed when they are opened."""


@dataclasses.dataclass(frozen=True)
class Window:
    """T + 1 tokens: one more than a row, whose targets are the tokens behind.

    `segments` counts the documents from 1; 0 is padding. `positions` starts at 0 in
    each. `weights` is above 0 where a token counts as a target.
    """

    tokens: np.ndarray
    segments: np.ndarray
    positions: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """Items one behind the other; an item is a begin, a prompt, an answer, an end.

    Plain documents have an empty prompt. `ends[k]` is where item k stops in `tokens`,
    `prompts[k]` counts its tokens before the answer, `sizes[k]` its answer's bytes.
    """

    tokens: np.ndarray
    ends: np.ndarray
    prompts: np.ndarray
    sizes: np.ndarray
    pad_id: int
    xz_nats_per_byte: float | None

    @property
    def starts(self) -> np.ndarray:
        """Where each item begins."""
        return np.concatenate([[0], self.ends[:-1]]).astype(np.int64)


class Windows(abc.ABC):
    """Windows by number; `n_tokens` and `n_bytes` count what is scored in them all."""

    n_bytes: int
    n_tokens: int
    xz_nats_per_byte: float | None

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abc.abstractmethod
    def __getitem__(self, i: int) -> Window:
        """Window i; IndexError from `len` on."""


class Stream(Windows):
    """Windows that overlap by one token, so each is a target exactly once."""

    def __init__(self, laid: TokenFile, seq_len: int, n_windows: int):
        self._laid, self._starts = laid, laid.starts
        self._seq_len, self._n = seq_len, n_windows
        used = min(len(laid.tokens), n_windows * seq_len + 1)
        scored = np.minimum(laid.ends, used) - (self._starts + laid.prompts)
        self.n_tokens = int(np.maximum(scored, 0).sum())
        self.n_bytes = int(laid.sizes.sum())
        self.xz_nats_per_byte = laid.xz_nats_per_byte

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> Window:
        if not 0 <= i < self._n:
            raise IndexError(f"Window {i} of {self._n}.")
        laid, first = self._laid, i * self._seq_len
        tokens = laid.tokens[first : first + self._seq_len + 1]
        at = np.arange(first, first + len(tokens))
        item = np.searchsorted(laid.ends, at, "right")
        within = at - self._starts[item]
        return _filled_up(
            self._seq_len + 1,
            laid.pad_id,
            tokens=tokens,
            segments=item - item[0] + 1,
            positions=np.minimum(within, at - first),
            weights=within >= laid.prompts[item],
        )


class Rows(Windows):
    """One item to a window; a prompt too long for it loses its middle.

    `n_cut` counts those, `n_left_out` the items whose answer alone does not fit.
    """

    def __init__(self, laid: TokenFile, seq_len: int):
        self._laid, self._starts = laid, laid.starts
        self._width = seq_len + 1
        lengths = laid.ends - self._starts
        answers = lengths - laid.prompts
        self._kept = np.flatnonzero(answers < self._width)
        self.n_left_out = len(lengths) - len(self._kept)
        self.n_cut = int((lengths[self._kept] > self._width).sum())
        self.n_tokens = int(answers[self._kept].sum())
        self.n_bytes = int(laid.sizes[self._kept].sum())
        self.xz_nats_per_byte = None

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, i: int) -> Window:
        if not 0 <= i < len(self):
            raise IndexError(f"Window {i} of {len(self)}.")
        laid, item = self._laid, self._kept[i]
        prompt = laid.prompts[item]
        tokens = laid.tokens[self._starts[item] : laid.ends[item]]
        room = self._width - (len(tokens) - prompt)
        if prompt > room:
            head, tail = room - room // 2, room // 2
            ends = tokens[:head], tokens[prompt - tail :]
            tokens, prompt = np.concatenate(ends), room
        at = np.arange(len(tokens))
        return _filled_up(
            self._width,
            laid.pad_id,
            tokens=tokens,
            segments=np.ones_like(at),
            positions=at,
            weights=at >= prompt,
        )


def full_windows(laid: TokenFile, seq_len: int) -> Stream:
    """The windows that are full; the tokens behind the last one are left."""
    return Stream(laid, seq_len, max(len(laid.tokens) - 1, 0) // seq_len)


def all_windows(laid: TokenFile, seq_len: int) -> Stream:
    """Every token in a window; the last one is filled up with weight 0."""
    return Stream(laid, seq_len, -(-(len(laid.tokens) - 1) // seq_len))


def open_token_file(directory: pathlib.Path, pad_id: int) -> TokenFile:
    """Maps the files that `prepare` wrote, if they are still what was written."""
    try:
        meta = json.loads((directory / "meta.json").read_text())
        path = directory / "tokens.bin"
        tokens = np.memmap(path, np.dtype(meta["dtype"]), "r")
        items = np.load(directory / "items.npy", allow_pickle=False)
        damaged = len(tokens) != meta["tokens"] or items.shape[1] != meta["items"]
        if not damaged and path.stat().st_size <= CHECKED_BYTES:
            damaged = cache.sha256(path) != meta["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{directory} cannot be read ({error}); delete it and prepare again."
        ) from error
    if damaged:
        raise UserError(
            f"{path} is not what was prepared (its length or hash differs); delete "
            f"{directory} and prepare again."
        )
    ends, prompts, sizes = items
    return TokenFile(tokens, ends, prompts, sizes, pad_id, meta["xz_nats_per_byte"])


def _filled_up(width: int, pad_id: int, *, tokens, segments, positions, weights):
    def row(values, dtype, fill=0):
        full = np.full(width, fill, dtype)
        full[: len(values)] = values
        return full

    return Window(
        tokens=row(tokens, np.int32, pad_id),
        segments=row(segments, np.int32),
        positions=row(positions, np.int32),
        weights=row(weights, np.float32),
    )
