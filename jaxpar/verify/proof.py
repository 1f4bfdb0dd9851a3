"""The result of a proof: as a table, as HTML and as JSON."""

import dataclasses
import math
from typing import Any

from jaxpar.tables import Grid, Report

HEADS = ("leaf", "init", "gradient", "update", "state", "end to end")
ROUNDING = 1e-5
"""An error below this may come from rounding in float32."""
COLUMNS = ("init", "gradient", "update", "state", "end-to-end")


@dataclasses.dataclass(frozen=True)
class Leaf:
    """The error of one array."""

    path: str
    """Its path, for an optimizer's moment after the moment's name."""
    kind: str
    """What it is: init, loss, gradient, update, state, evaluation, tokens ..."""
    error: float
    """Largest difference on any device, relative to the array."""
    limit: float
    """The error below which it passes; 0 requires equal bits."""
    zero: bool = False
    """Whether it is zero mathematically, so that one device has rounding only."""

    @property
    def passed(self) -> bool:
        """Whether the error is below the limit; a NaN never is."""
        return self.error < self.limit or self.error == self.limit == 0

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; an error that is not finite is null."""
        kind = f"zero {self.kind}" if self.zero else self.kind
        error = self.error if math.isfinite(self.error) else None
        return {"path": self.path, "kind": kind, "error": error}


@dataclasses.dataclass(frozen=True)
class First:
    """The first array that differs, in the order in which a step computes them."""

    where: str
    """The part of the step: init, forward, backward, optimizer, evaluate, generate."""
    name: str
    """Name of the activation, or path of the leaf."""
    layer: int | None = None
    """Its layer, if it is stacked."""
    shard: dict[str, int | list[int]] | None = None
    """Mesh coordinates of the wrong devices, by the layout's words; None for all."""
    axis: str | None = None
    """The words of the layout that cause it: the fewest with which it is wrong."""

    def __str__(self) -> str:
        words = [f"{self.where}: {self.name}"]
        if self.layer is not None:
            words.append(f"layer {self.layer}")
        if self.shard:
            coordinates = (f"{axis} {i}" for axis, i in self.shard.items())
            words.append("on " + ", ".join(coordinates))
        if self.axis:
            words.append(f"caused by splitting over {self.axis}")
        return ", ".join(words)


@dataclasses.dataclass(frozen=True)
class Proof(Report):
    """A layout compared with one device, leaf by leaf."""

    layout: str
    """The layout, as text."""
    about: str
    """What was computed, and the limits, in one line."""
    leaves: tuple[Leaf, ...]
    """The leaves that decide whether it passes."""
    end_to_end: tuple[Leaf, ...] = ()
    """Updates from each side's own gradients; they are shown and decide nothing."""
    first: First | None = None
    """What is wrong first; None if all leaves pass."""

    @property
    def passed(self) -> bool:
        """Whether all leaves pass."""
        return all(leaf.passed for leaf in self.leaves)

    @property
    def verdict(self) -> str:
        """The result in one line."""
        count = f"{len(self.leaves)} leaves"
        if self.passed:
            # A derivative is compared with differences of the loss, which are rougher.
            alike = (leaf for leaf in self.leaves if leaf.kind != "derivative")
            worst = max((leaf.error for leaf in alike), default=0.0)
            return (
                f"passed: {count} of {self.layout} are those of one device "
                f"(largest error {worst:.1e})"
            )
        failed = sum(not leaf.passed for leaf in self.leaves)
        return (
            f"FAILED: {failed} of {count} of {self.layout} differ; first {self.first}"
        )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, which `jaxpar verify --json` prints."""
        return {
            "passed": self.passed,
            "layout": self.layout,
            "leaves": [leaf.to_json() for leaf in self.leaves],
            "first": None if self.first is None else dataclasses.asdict(self.first),
        }

    @property
    def grid(self) -> Grid:
        """As a table: what was computed, a row for each leaf, the verdict."""
        return Grid(HEADS, self._rows(), before=[self.about], after=self._footer())

    def _rows(self) -> list[tuple[str, ...]]:
        """A row for each parameter, then one for each other leaf."""
        cells: dict[str, dict[str, str]] = {}
        parameters = {leaf.path for leaf in self.leaves if leaf.kind == "init"}
        for leaf in (*self.leaves, *self.end_to_end):
            path, kind = leaf.path, leaf.kind
            if kind == "state":
                moment, _, inside = path.partition("/")
                path = inside if inside in parameters else path
                kind = f"state {moment}"
            if path in parameters and kind != "derivative":
                cells.setdefault(path, {})[kind] = _cell(leaf)
            else:
                label = f"{leaf.kind} {path}" if leaf.kind != path else path
                cells[label] = {COLUMNS[1]: _cell(leaf)}
        return [(label, *_columns(row)) for label, row in cells.items()]

    def _footer(self) -> list[str]:
        lines = ["end to end: update from each side's own gradients; not compared."]
        if any(leaf.zero for leaf in self.leaves):
            lines.append(
                "0: zero mathematically; its error is relative to the largest gradient."
            )
        if any(leaf.kind == "derivative" for leaf in self.leaves):
            lines.append(
                "derivative: a router's gradient against differences of the loss."
            )
        worst = max((leaf.error for leaf in self.leaves), default=0.0)
        if not self.passed and worst < ROUNDING:
            lines.append(
                "An error this small may be rounding: something is computed in "
                "float32, or the model amplifies rounding (norms of very few numbers)."
            )
        return [*lines, self.verdict]


def _cell(leaf: Leaf) -> str:
    mark = "" if leaf.passed or leaf.kind == "end-to-end" else " !"
    text = "equal" if leaf.error == 0 else f"{leaf.error:.1e}"
    return ("0: " if leaf.zero else "") + text + mark


def _columns(row: dict[str, str]) -> tuple[str, ...]:
    states = [text for kind, text in row.items() if kind.startswith("state")]
    joined = {**row, "state": "  ".join(states)}
    return tuple(joined.get(column, "") for column in COLUMNS)
