"""Sharding rules: which mesh axes split which logical axis."""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence

from jaxpar import axes
from jaxpar.errors import UserError

MESH_AXES = ("replica", "stage", "data", "context", "expert", "tensor")


@dataclasses.dataclass(frozen=True)
class IfFree:
    """A mesh axis that splits a logical axis only where no other axis uses it."""

    axis: str
    """Name of the mesh axis, one of MESH_AXES."""


def if_free(axis: str) -> IfFree:
    """A mesh axis that splits a logical one in arrays where no other axis uses it.

    `seq=("context", if_free("tensor"))` splits the sequence of the residual stream over
    `tensor` (sequence parallelism, Korthikanti et al., 2022), but not that of the
    logits, whose vocabulary is split over `tensor`.
    """
    return IfFree(axis)


Rule = tuple[str | IfFree, ...]
"""The mesh axes that split one logical axis, in order."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """The mesh axes that split each logical axis; one field for each axis name.

    A field takes a mesh axis, an `if_free`, or a tuple of them; () does not split. Axes
    of a model's own (jaxpar.axes) are never split.
    """

    batch: Rule = ()
    """Rows of a batch."""
    seq: Rule = ()
    """Tokens of a row."""
    embed: Rule = ()
    """Width of the residual stream."""
    heads: Rule = ()
    """Query heads."""
    kv_heads: Rule = ()
    """Key and value heads."""
    head_dim: Rule = ()
    """Numbers of one head."""
    mlp: Rule = ()
    """Hidden units of an MLP."""
    vocab: Rule = ()
    """Token ids."""
    layers: Rule = ()
    """Layers of a stack."""
    experts: Rule = ()
    """Experts of a mixture."""
    capacity: Rule = ()
    """Token slots of one expert."""
    rank: Rule = ()
    """Rank of a low-rank factor."""
    position: Rule = ()
    """Rows of a table of learned positions."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            rule = getattr(self, field.name)
            if isinstance(rule, str | IfFree):
                rule = (rule,)
            for item in rule:
                axis = item.axis if isinstance(item, IfFree) else item
                if axis not in MESH_AXES:
                    raise UserError(
                        f"Rule {field.name}={axis!r}: no such mesh axis; "
                        f"there are {', '.join(MESH_AXES)}."
                    )
            object.__setattr__(self, field.name, tuple(rule))

    def resolve(
        self, names: Sequence[str | None], beside: Sequence[Sequence[str | None]] = ()
    ) -> tuple[tuple[str, ...], ...]:
        """The mesh axes that split each dimension of an array with these axis names.

        A name of None is a dimension that is not split. beside: the names of arrays
        that are used together with this one. An `if_free` axis is used only if it is
        free in each of them that has the same logical axis, so that they are all split
        alike.

        Raises:
          UserError: a name is unknown, or a mesh axis would split two dimensions.
        """
        rules = [self._rule(name) for name in names]
        used: dict[str, str] = {}
        for name, rule in zip(names, rules, strict=True):
            for axis in rule:
                if isinstance(axis, str):
                    _use(used, axis, str(name), names)
        always_used = frozenset(used)
        dims = []
        for name, rule in zip(names, rules, strict=True):
            others = [self._always_used(other) for other in beside if name in other]
            taken = always_used.union(*others)
            dim = []
            for item in rule:
                if isinstance(item, IfFree) and item.axis not in taken:
                    _use(used, item.axis, str(name), names)
                    dim.append(item.axis)
                elif isinstance(item, str):
                    dim.append(item)
            dims.append(tuple(dim))
        return tuple(dims)

    def _always_used(self, names: Sequence[str | None]) -> set[str]:
        """The mesh axes that split an array unconditionally."""
        items = (item for name in names for item in self._rule(name))
        return {item for item in items if isinstance(item, str)}

    def _rule(self, name: str | None) -> Rule:
        if name is None:
            return ()
        require_known([name])
        return () if axes.is_own(name) else getattr(self, name)


def _use(
    used: dict[str, str], axis: str, name: str, names: Sequence[str | None]
) -> None:
    """Enters in `used` that a mesh axis splits the logical axis `name`."""
    if axis in used:
        raise UserError(
            f"An array {tuple(names)} would use mesh axis {axis!r} twice, for "
            f"{used[axis]!r} and {name!r}; give it to one of them as if_free({axis!r})."
        )
    used[axis] = name


def require_known(names: Iterable[str]) -> None:
    """Refuses names of axes that jaxpar.axes does not know, nor as a model's own.

    Raises:
      UserError: the first of them, with the nearest known name.
    """
    for name in names:
        if name not in axes.NAMES and not axes.is_own(name):
            near = difflib.get_close_matches(name, axes.NAMES, 1)
            raise UserError(
                f"Unknown axis {name!r}"
                f"{f'; did you mean {near[0]!r}?' if near else '.'} There are "
                f"{', '.join(axes.NAMES)}; an axis of your own, which no layout "
                f"splits, ends in an underscore, as in {name}_."
            )
