"""Sequences and mappings whose items are made when they are asked for."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar, overload

T = TypeVar("T")


class Lazy(Sequence[T]):
    """A sequence whose items are read when they are asked for."""

    def __init__(self, indices: Sequence[int], read: Callable[[int], T]):
        self._indices, self._read = indices, read

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, i: int) -> T: ...
    @overload
    def __getitem__(self, i: slice) -> "Lazy[T]": ...
    def __getitem__(self, i: int | slice) -> "T | Lazy[T]":
        if isinstance(i, slice):
            return Lazy(self._indices[i], self._read)
        return self._read(self._indices[i])


class Paths(Mapping[str, pathlib.Path]):
    """Paths by names; a text takes a fifth of the memory of a path."""

    def __init__(self, texts: Mapping[str, str]):
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __getitem__(self, name: str) -> pathlib.Path:
        return pathlib.Path(self._texts[name])
