"""Loads another run's parameters by path; each must be accounted for."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp

from jaxpar.errors import UserError
from jaxpar.tree import flatten, unflatten

VOCAB, POSITION = "vocab", "position"


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """How many token ids the two models have, and which axes count them."""

    names: Mapping[str, tuple[str | None, ...]]
    """Axis names of each parameter here, by path; an axis of ids is named `vocab`."""
    ours: int
    """Token ids of the model here, without padding."""
    theirs: int
    """Token ids of the source's model, without padding."""
    may_grow: bool = False
    """Whether parameters keep what belongs to the source's ids, and get new ones."""

    @property
    def grows(self) -> bool:
        """Whether there are more ids here, and may be."""
        return self.may_grow and self.ours > self.theirs

    @property
    def differs(self) -> bool:
        """Whether a row of the one may be no token of the other."""
        return self.ours != self.theirs

    def axes(self, path: str, name: str = VOCAB) -> tuple[int, ...]:
        """The axes of a parameter that have this name."""
        names = enumerate(self.names.get(path, ()))
        return tuple(axis for axis, found in names if found == name)


NO_VOCABULARY = Vocabulary({}, 0, 0)
"""Of parameters whose axes have no names."""


@dataclasses.dataclass(frozen=True)
class Transfer:
    """What is not simply taken from the source, by path, with shapes; see `account`."""

    fresh: dict[str, tuple[int, ...]]
    """Parameters that stay newly initialised."""
    left_out: dict[str, tuple[int, ...]]
    """The source's parameters that are not used."""
    grown: dict[str, tuple[int, ...]]
    """Parameters that keep the source's values at its ids, and are new elsewhere."""
    vocabulary: Vocabulary = NO_VOCABULARY

    def __str__(self) -> str:
        """For the terminal, a line for each kind; empty where all is simply taken."""
        sizes = f"{self.vocabulary.theirs} to {self.vocabulary.ours} ids"
        kinds = {
            "Stays newly initialised": self.fresh,
            "Not taken from the source": self.left_out,
            f"Grows from {sizes}, new ones initialised": self.grown,
        }
        return "\n".join(
            f"{kind}: {', '.join(f'{path} {shape}' for path, shape in paths.items())}"
            for kind, paths in kinds.items()
            if paths
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The same as JSON."""
        kinds = {"fresh": self.fresh, "left_out": self.left_out, "grown": self.grown}
        found = {
            kind: {path: list(shape) for path, shape in paths.items()}
            for kind, paths in kinds.items()
        }
        return {**found, "ids": [self.vocabulary.theirs, self.vocabulary.ours]}


def account(
    ours: Any,
    theirs: Any,
    *,
    keep_fresh: tuple[str, ...] = (),
    vocabulary: Vocabulary = NO_VOCABULARY,
) -> Transfer:
    """What becomes of each parameter, here and in the source, before any is read.

    ours, theirs: trees of arrays, or of their shapes. keep_fresh: globs of paths that
    keep their fresh values; of the source's parameters, it also names those that are
    to be left out.

    Raises:
      UserError: lists together what is missing, unused or does not fit, with both
        shapes, what to write, and globs of keep_fresh that match nothing.
    """
    ours, theirs = flatten(ours), flatten(theirs)

    def is_named(path: str) -> bool:
        return any(fnmatchcase(path, glob) for glob in keep_fresh)

    kept = {path for path in ours if is_named(path)}
    taken = sorted(ours.keys() & theirs.keys() - kept)
    of_ids = [path for path in taken if vocabulary.axes(path)]
    grown = of_ids if vocabulary.grows else []
    not_grown = of_ids if vocabulary.differs and not vocabulary.grows else []
    misfits = [
        path
        for path in taken
        if path not in not_grown and not _fits(path, ours, theirs, grown, vocabulary)
    ]
    paths = ours.keys() | theirs.keys()
    unmatched = [g for g in keep_fresh if not any(fnmatchcase(p, g) for p in paths)]
    missing = sorted(ours.keys() - theirs.keys() - kept)
    unused = sorted(p for p in theirs.keys() - ours.keys() if not is_named(p))
    problems = {
        "missing there": missing,
        "unused here": unused,
        "misfitting": [_both(path, ours, theirs) for path in misfits],
        f"of {vocabulary.ours} ids here, {vocabulary.theirs} there": [
            _both(path, ours, theirs) for path in not_grown
        ],
        "keep_fresh matches nothing": unmatched,
        "grow_vocab keeps nothing": (
            ["all with an axis `vocab` stay fresh"]
            if vocabulary.grows and not grown
            else []
        ),
    }
    if any(problems.values()):
        types = _other_types(misfits, ours, theirs)
        remedies = _remedies(missing + unused, misfits, types, not_grown, vocabulary)
        raise _unaccounted(problems, remedies)
    return Transfer(
        {path: tuple(ours[path].shape) for path in sorted(kept)},
        {p: tuple(theirs[p].shape) for p in sorted(theirs.keys() - set(taken))},
        {path: tuple(ours[path].shape) for path in grown},
        vocabulary,
    )


def _unaccounted(problems: dict[str, list[str]], remedies: Iterable[str]) -> UserError:
    """The error that lists problems, and what to write."""
    listed = [f"{what}: {items}" for what, items in problems.items() if items]
    return UserError(
        "The source's parameters do not account for this model's; "
        f"{'; '.join(listed)}. {' '.join(remedies)}".strip()
    )


def adopt(
    fresh: Any,
    pretrained: Any,
    *,
    keep_fresh: tuple[str, ...] = (),
    vocabulary: Vocabulary = NO_VOCABULARY,
) -> Any:
    """The pretrained parameters, in a tree like that of the fresh ones.

    Where the vocabulary grows, the values of the source's ids are kept bit for bit.
    All that follows them is fresh: new ids, and the padding of the table. (A source's
    padding was never trained, so a new id that takes its place does not take its
    values. Ids of the source's model that its tokenizer does not use were trained, as
    ids that never come next, and are kept.) Each array stays split over the devices as
    the fresh one is.

    Raises:
      UserError: as `account` does.
    """
    transfer = account(fresh, pretrained, keep_fresh=keep_fresh, vocabulary=vocabulary)
    ours, theirs = flatten(fresh), flatten(pretrained)

    def chosen(path: str) -> Any:
        if path in transfer.fresh:
            return ours[path]
        if path in transfer.grown:
            axes = vocabulary.axes(path)
            return _grown(ours[path], theirs[path], axes, vocabulary.theirs)
        return theirs[path]

    return unflatten({path: chosen(path) for path in ours})


def _grown(
    fresh: jax.Array, learned: jax.Array, axes: tuple[int, ...], n_ids: int
) -> jax.Array:
    """The learned values at the first ids along these axes, the fresh ones after."""
    shapes = fresh.shape, learned.shape
    # Padding what is split sends each device only the rows it lacks: no gathering.
    added = [(0, new - old, 0) for new, old in zip(*shapes, strict=True)]

    def merge(fresh, learned):
        learned = jax.lax.pad(learned, jnp.zeros((), learned.dtype), added)
        for axis in axes:
            ids = jax.lax.broadcasted_iota(jnp.int32, fresh.shape, axis)
            learned = jnp.where(ids < n_ids, learned, fresh)
        return learned

    return jax.jit(merge, out_shardings=fresh.sharding)(fresh, learned)


def _fits(
    path: str,
    ours: Mapping[str, Any],
    theirs: Mapping[str, Any],
    grown: Iterable[str],
    vocabulary: Vocabulary,
) -> bool:
    """Whether types and shapes agree, but for the axes that grow."""
    mine, other = ours[path], theirs[path]
    if mine.dtype != other.dtype or len(mine.shape) != len(other.shape):
        return False
    growing = vocabulary.axes(path) if path in grown else ()
    return all(
        (new >= vocabulary.ours and old >= vocabulary.theirs)
        if axis in growing
        else new == old
        for axis, (new, old) in enumerate(zip(mine.shape, other.shape, strict=True))
    )


def _remedies(
    one_sided: list[str],
    misfits: list[str],
    types: Mapping[str, Any],
    not_grown: list[str],
    vocabulary: Vocabulary,
) -> Iterator[str]:
    """What to write instead, for each kind of problem.

    types: those of the source, of misfits that have another one.
    """
    reshaped = [path for path in misfits if path not in types]
    if not_grown and vocabulary.ours > vocabulary.theirs:
        yield (
            f"Write grow_vocab={vocabulary.ours} to keep the rows of the source's "
            f"{vocabulary.theirs} ids and initialise the others."
        )
    elif not_grown:
        yield (
            f"A vocabulary cannot shrink: give the model a vocab_size of "
            f"{vocabulary.theirs} or more."
        )
    positions = [path for path in reshaped if vocabulary.axes(path, POSITION)]
    if positions:
        yield (
            "Learned positions cannot be added to: keep the source's max_positions, "
            f"with rows that are no longer, or learn all of {positions} anew."
        )
    if named := sorted({*one_sided, *reshaped, *not_grown}):
        yield (
            "Name what may stay fresh, or be left out, in keep_fresh; for all of it "
            f"write keep_fresh={tuple(named)}."
        )
    for kind in sorted({str(kind) for kind in types.values()}):
        yield f"Write precision.params={kind}, the source's type."


def _other_types(
    paths: list[str], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> dict[str, Any]:
    """The source's types, of the paths where it has another one."""
    return {p: theirs[p].dtype for p in paths if theirs[p].dtype != ours[p].dtype}


def _both(path: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    mine, other = ours[path], theirs[path]
    return f"{path} {mine.shape} {mine.dtype} here, {other.shape} {other.dtype} there"
