"""Token files, read as windows of a fixed length."""

import abc
import bisect
import dataclasses
import functools
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

STRIDE = 512
"""Of so many items, the end of one stays in memory once it has been looked up."""
ITEMS_AT_A_TIME = 1 << 20


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


class Numbers(Protocol):
    """A sequence of integers, of which slices are read: an array, or a file."""

    def __len__(self) -> int: ...
    def __getitem__(self, where: slice, /) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class TokenFile:
    """Items one after another: each is begin, prompt, answer, end.

    A plain document has an empty prompt. `ends`, `prompts` and `sizes` are as in Items;
    they may be files, of which only what is looked up is in memory.
    """

    tokens: Numbers
    ends: Numbers
    prompts: Numbers
    sizes: Numbers
    pad_id: int
    xz_nats_per_byte: float | None
    """What xz -9 needs for the text; None where it was not tried."""
    totals: tuple[int, int] | None = None
    """The sums of `prompts` and `sizes`; None where they are not known."""

    def items_within(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The items that hold the tokens from start to before stop.

        Their bounds [k + 1], from the first one's first token to the last one's end,
        and their prompts [k].
        """
        full = range(len(self.ends) // STRIDE)
        block = bisect.bisect_right(full, start, key=self._end_of_block)
        # An item has two tokens or more; one before the block says where it begins.
        first, most = max(block * STRIDE - 1, 0), (stop - start) // 2 + 1
        ends = self.ends[first : (block + 1) * STRIDE + most]
        i = int(ends.searchsorted(start, "right"))
        last = int(ends.searchsorted(stop, "left")) + 1
        bounds = ends[i - 1 : last] if i else np.concatenate([[0], ends[:last]])
        return bounds, self.prompts[first + i : first + last]

    def item(self, i: int) -> tuple[int, int, int]:
        """Item i: its first token, the one after its last, and its prompt's length."""
        ends = self.ends[max(i - 1, 0) : i + 1]
        return int(ends[0]) if i else 0, int(ends[-1]), int(self.prompts[i : i + 1][0])

    def in_blocks(self) -> Iterator[tuple[int, np.ndarray, Items]]:
        """All items in order, some at a time: the first's number, lengths, and items.

        Lengths are in tokens [n].
        """
        before = 0
        for first in range(0, len(self.ends), ITEMS_AT_A_TIME):
            some = slice(first, first + ITEMS_AT_A_TIME)
            items = Items(self.ends[some], self.prompts[some], self.sizes[some])
            yield first, np.diff(items.ends, prepend=before), items
            before = items.ends[-1]

    @functools.cached_property
    def sums(self) -> tuple[int, int]:
        """The sums of `prompts` and `sizes`."""
        if self.totals is not None:
            return self.totals
        sums = [(i.prompts.sum(), i.sizes.sum()) for _, _, i in self.in_blocks()]
        prompts, sizes = np.array(sums or [(0, 0)]).sum(axis=0)
        return int(prompts), int(sizes)

    def _end_of_block(self, block: int) -> int:
        if self._block_ends[block] < 0:
            last = (block + 1) * STRIDE - 1
            self._block_ends[block] = self.ends[last : last + 1][0]
        return self._block_ends[block]

    @functools.cached_property
    def _block_ends(self) -> np.ndarray:
        """Each STRIDE-th end, where it has been looked up; else -1."""
        return np.full(len(self.ends) // STRIDE, -1, np.int64)


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
        self._file, self._seq_len, self._n = file, seq_len, n_windows
        self._places = np.arange(seq_len + 1, dtype=np.int32)
        n_tokens, used = len(file.tokens), n_windows * seq_len + 1
        prompts, self.n_bytes = file.sums
        self.n_tokens = n_tokens - prompts
        if used < n_tokens:
            bounds, prompts = file.items_within(used, n_tokens)
            answers = bounds[:-1] + prompts
            unused = bounds[1:] - np.maximum(answers, used)
            self.n_tokens -= int(unused.sum())
        self.xz_nats_per_byte = file.xz_nats_per_byte

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, i: int) -> Window:
        if not 0 <= i < self._n:
            raise IndexError(f"Window {i} of {self._n}.")
        first, width = i * self._seq_len, self._seq_len + 1
        tokens = self._file.tokens[first : first + width]
        n, places = len(tokens), self._places[: len(tokens)]
        bounds, prompts = self._file.items_within(first, first + n)
        answers = bounds[:-1] + prompts - first
        if len(prompts) == 1:
            segments, positions = np.ones(n, np.int32), places
        else:
            begins = np.maximum(bounds[:-1] - first, 0)
            lengths = np.minimum(bounds[1:] - first, n) - begins
            item = np.repeat(np.arange(len(prompts)), lengths)
            segments, positions = item + 1, places - begins[item]
            answers = answers[item]
        return Window(
            tokens=_padded(tokens, width, np.int32, self._file.pad_id),
            segments=_padded(segments, width, np.int32),
            positions=_padded(positions, width, np.int32),
            weights=_padded(places >= answers, width, np.float32),
        )


class Rows(Windows):
    """One item in each window; a prompt that is too long for it loses its middle.

    `n_cut` counts those, `n_left_out` the items whose answer alone does not fit.
    """

    def __init__(self, file: TokenFile, seq_len: int):
        self._file, self._width = file, seq_len + 1
        self.n_cut = self.n_tokens = self.n_bytes = 0
        left_out = [np.empty(0, np.int64)]
        for first, lengths, items in file.in_blocks():
            answers = lengths - items.prompts
            fits = answers < self._width
            left_out.append(first + np.flatnonzero(~fits))
            self.n_cut += int((fits & (lengths > self._width)).sum())
            self.n_tokens += int(answers[fits].sum())
            self.n_bytes += int(items.sizes[fits].sum())
        left = np.concatenate(left_out)
        self.n_left_out = len(left)
        # How many items that are kept lie before each one that is left out.
        self._kept_before = left - np.arange(len(left))
        self.xz_nats_per_byte = None

    def __len__(self) -> int:
        return len(self._file.ends) - self.n_left_out

    def __getitem__(self, i: int) -> Window:
        if not 0 <= i < len(self):
            raise IndexError(f"Window {i} of {len(self)}.")
        file = self._file
        item = i + int(np.searchsorted(self._kept_before, i, "right"))
        start, end, prompt = file.item(item)
        tokens = file.tokens[start:end]
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
    """Some values in an array of their own, padded on the right."""
    if len(values) == width:
        return values.astype(dtype)
    full = np.full(width, fill, dtype)
    full[: len(values)] = values
    return full
