"""The outcome of a proof, for people and for machines."""

import dataclasses
import math
from typing import Any

from jaxpar.tables import Grid

HEADS = ("leaf", "init", "gradient", "update", "state", "end to end")
ROUNDING = 1e-5
COLUMNS = ("init", "gradient", "update", "state", "end-to-end")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array's error, and the limit below which it passes.

    zero: it is zero by mathematics, and what one device has of it is rounding.
    """

    path: str
    kind: str
    error: float
    limit: float
    zero: bool = False

    @property
    def passed(self) -> bool:
        # Equal bits where the limit is 0; a NaN passes nothing.
        return self.error < self.limit or self.error == self.limit == 0

    def to_json(self) -> dict[str, Any]:
        """An error that is no finite number is null."""
        kind = f"zero {self.kind}" if self.zero else self.kind
        error = self.error if math.isfinite(self.error) else None
        return {"path": self.path, "kind": kind, "error": error}


@dataclasses.dataclass(frozen=True)
class First:
    """What differs first: an activation, or a leaf, and where it is wrong.

    layer: its number in the stack. shard: mesh coordinates of the devices that are
    wrong, None where all are. axis: the mesh axes without which it is right.
    """

    where: str
    name: str
    layer: int | None = None
    shard: dict[str, int | list[int]] | None = None
    axis: str | None = None

    def __str__(self) -> str:
        said = [f"{self.where}: {self.name}"]
        if self.layer is not None:
            said.append(f"layer {self.layer}")
        if self.shard:
            places = (f"{axis} {at}" for axis, at in self.shard.items())
            said.append("on " + ", ".join(places))
        if self.axis:
            said.append(f"caused by splitting over {self.axis}")
        return ", ".join(said)


@dataclasses.dataclass(frozen=True)
class Proof:
    """A layout compared with one device, leaf by leaf; text, HTML or JSON.

    about: what was computed. end_to_end: leaves that are shown and not judged.
    """

    layout: str
    about: str
    leaves: tuple[Leaf, ...]
    end_to_end: tuple[Leaf, ...] = ()
    first: First | None = None

    @property
    def passed(self) -> bool:
        return all(leaf.passed for leaf in self.leaves)

    @property
    def verdict(self) -> str:
        """One line that says it all."""
        judged = f"{len(self.leaves)} leaves"
        if self.passed:
            worst = max((leaf.error for leaf in self.leaves), default=0.0)
            return f"passed: {judged} of {self.layout} are those of one device " + (
                f"(largest error {worst:.1e})"
            )
        bad = sum(not leaf.passed for leaf in self.leaves)
        return f"FAILED: {bad} of {judged} of {self.layout} differ; first {self.first}"

    def to_json(self) -> dict[str, Any]:
        """One object, as `--json` prints it."""
        return {
            "passed": self.passed,
            "layout": self.layout,
            "leaves": [leaf.to_json() for leaf in self.leaves],
            "first": None if self.first is None else dataclasses.asdict(self.first),
        }

    @property
    def grid(self) -> Grid:
        """What was computed, a row for each leaf, the verdict."""
        return Grid(HEADS, self._rows(), before=[self.about], after=self._footer())

    def __str__(self) -> str:
        return str(self.grid)

    def __rich__(self) -> Any:
        return self.grid

    def _repr_html_(self) -> str:
        return self.grid.html()

    def _rows(self) -> list[tuple[str, ...]]:
        """Parameters with their errors, then what belongs to none of them."""
        cells: dict[str, dict[str, str]] = {}
        parameters = {leaf.path for leaf in self.leaves if leaf.kind == "init"}
        for leaf in (*self.leaves, *self.end_to_end):
            path, kind = leaf.path, leaf.kind
            if kind == "state":
                moment, _, inside = path.partition("/")
                path = inside if inside in parameters else path
                kind = f"state {moment}"
            if path in parameters:
                cells.setdefault(path, {})[kind] = _cell(leaf)
            else:
                at = f"{leaf.kind} {path}" if leaf.kind != path else path
                cells[at] = {COLUMNS[1]: _cell(leaf)}
        return [(path, *_columns(found)) for path, found in cells.items()]

    def _footer(self) -> list[str]:
        lines = ["end to end: the update of each one's own gradients; not judged."]
        if any(leaf.zero for leaf in self.leaves):
            lines.append("0: zero by mathematics, measured by the largest of its kind.")
        worst = max((leaf.error for leaf in self.leaves), default=0.0)
        if not self.passed and worst < ROUNDING:
            lines.append(
                "So small an error may be rounding: something computed in float32, "
                "or a model that amplifies it (norms of very few numbers)."
            )
        return [*lines, self.verdict]


def _cell(leaf: Leaf) -> str:
    mark = "" if leaf.passed or leaf.kind == "end-to-end" else " !"
    text = "equal" if leaf.error == 0 else f"{leaf.error:.1e}"
    return ("0: " if leaf.zero else "") + text + mark


def _columns(found: dict[str, str]) -> tuple[str, ...]:
    states = [text for kind, text in found.items() if kind.startswith("state")]
    joined = {**found, "state": "  ".join(states)}
    return tuple(joined.get(column, "") for column in COLUMNS)
