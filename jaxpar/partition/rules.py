"""Which mesh axes split which named axis."""

import dataclasses
from collections.abc import Sequence

from jaxpar import axes
from jaxpar.errors import UserError

MESH_AXES = ("replica", "stage", "data", "context", "expert", "tensor")


@dataclasses.dataclass(frozen=True)
class IfFree:
    """A mesh axis that counts only in arrays where no other name has it."""

    axis: str


def if_free(axis: str) -> IfFree:
    """A mesh axis that splits a logical one in arrays where nothing else uses it.

    `seq=("context", if_free("tensor"))` splits the sequence of the residual stream over
    `tensor`, but not that of the logits, whose vocabulary has `tensor`.
    """
    return IfFree(axis)


Rule = tuple[str | IfFree, ...]


@dataclasses.dataclass(frozen=True)
class Rules:
    """Which mesh axes split each logical axis; the fields are the vocabulary."""

    batch: Rule = ()
    seq: Rule = ()
    embed: Rule = ()
    heads: Rule = ()
    kv_heads: Rule = ()
    head_dim: Rule = ()
    mlp: Rule = ()
    vocab: Rule = ()
    layers: Rule = ()
    experts: Rule = ()
    capacity: Rule = ()
    rank: Rule = ()
    position: Rule = ()

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, str | IfFree):
                value = (value,)
            for item in value:
                axis = item.axis if isinstance(item, IfFree) else item
                if axis not in MESH_AXES:
                    raise UserError(
                        f"Rule {field.name}={axis!r}: no such mesh axis; "
                        f"there are {', '.join(MESH_AXES)}."
                    )
            object.__setattr__(self, field.name, tuple(value))

    def resolve(
        self, names: Sequence[str | None], beside: Sequence[Sequence[str | None]] = ()
    ) -> tuple[tuple[str, ...], ...]:
        """The mesh axes of each dimension; a mesh axis serves an array once.

        beside: the names of arrays that are used together with this one. An `if_free`
        axis counts only if it is free in each of them that has the same logical axis,
        so that they are all split alike.

        Raises:
          UserError: a name is unknown, or one mesh axis would serve two names.
        """
        rules = [self._rule(name) for name in names]
        owned: dict[str, str] = {}
        for name, rule in zip(names, rules, strict=True):
            for axis in rule:
                if isinstance(axis, str):
                    _claim(owned, axis, str(name), names)
        owners = frozenset(owned)
        found = []
        for name, rule in zip(names, rules, strict=True):
            got = []
            others = [self._owners(other) for other in beside if name in other]
            taken = owners.union(*others)
            for item in rule:
                if isinstance(item, IfFree) and item.axis not in taken:
                    _claim(owned, item.axis, str(name), names)
                    got.append(item.axis)
                elif isinstance(item, str):
                    got.append(item)
            found.append(tuple(got))
        return tuple(found)

    def _owners(self, names: Sequence[str | None]) -> set[str]:
        rules = (item for name in names for item in self._rule(name))
        return {item for item in rules if isinstance(item, str)}

    def _rule(self, name: str | None) -> Rule:
        if name is None:
            return ()
        if name not in axes.NAMES:
            raise UserError(
                f"Unknown axis {name!r}; jaxpar.axes knows {', '.join(axes.NAMES)}."
            )
        return getattr(self, name)


def _claim(
    owned: dict[str, str], axis: str, name: str, names: Sequence[str | None]
) -> None:
    if axis in owned:
        raise UserError(
            f"An array {tuple(names)} would use mesh axis {axis!r} twice, for "
            f"{owned[axis]!r} and {name!r}; give it to one of them as if_free({axis!r})."
        )
    owned[axis] = name
