"""What every device holds of an experiment, shown allocating nothing."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxpar.errors import UserError
from jaxpar.experiment import Experiment, Finetune
from jaxpar.look.activations import activation_bytes
from jaxpar.models.base import ModelConfig
from jaxpar.models.describe import describe, fields_of
from jaxpar.partition.layout import DATA_WORDS, Layout, as_layout
from jaxpar.partition.precision import in_its_types
from jaxpar.pipeline.ticks import Schedule, microbatches
from jaxpar.run.directory import RunDir
from jaxpar.run.placing import layout_for
from jaxpar.tables import Cells, Grid, Report, size_of
from jaxpar.train.state import Recipe
from jaxpar.train.state_bytes import state_bytes
from jaxpar.tree import flatten

HEADS = ("parameter", "axes", "shape", "on each device", "bytes")
NOT_COUNTED = (
    "Not counted: batches, and what only the compiler knows (gathered weights, buffers)"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: its axes, shape, the piece and bytes on each device.

    copied: mesh axes along which devices hold copies of the same piece.
    """

    path: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    piece: tuple[int, ...]
    bytes: int
    copied: tuple[str, ...]

    @property
    def cells(self) -> Cells:
        """As texts."""
        pieces = str(self.shape), str(self.piece), size_of(self.bytes)
        return self.path, " ".join(self.axes), *pieces

    def bytes_under(self, layout: Layout) -> int:
        """What each device would hold of it under another layout."""
        numbers = math.prod(layout.piece(self.shape, self.axes))
        return self.bytes * numbers // math.prod(self.piece)


@dataclasses.dataclass(frozen=True)
class Copied:
    """What devices along a mesh axis hold copies of: parameters or optimizer state.

    bytes: on each device. layout: the one with zero1 or fsdp in the axis's place that
    leaves the least of them, `then`. It is "" where none fits this model and batch, or
    each leaves as much or holds more of the whole state.
    """

    what: str
    axis: str
    bytes: int
    layout: str
    then: int

    def __str__(self) -> str:
        held, then = size_of(self.bytes), "no zero1 or fsdp here splits it"
        if self.layout:
            then = f"{self.layout} leaves {size_of(self.then)} of it on each device"
        return f"{held} of the {self.what} is copied over {self.axis}; {then}"


@dataclasses.dataclass(frozen=True)
class Table(Report):
    """Parameters under a layout, the largest piece first; text, HTML, JSON, a picture.

    optimizer, activations: bytes on each device, the latter an estimate. microbatches:
    of a step. active: how many of the numbers are used for each token.
    """

    model: str
    layout: Layout
    rows: tuple[Row, ...]
    optimizer: int
    activations: int
    copied: tuple[Copied, ...]
    microbatches: int = 1
    active: int = 0

    @property
    def schedule(self) -> Schedule:
        """The pipeline's; of one stage, where there is none."""
        S = self.layout.n_stages
        return Schedule(S, self.microbatches // S, self.layout.n_rounds)

    @property
    def bubble(self) -> float:
        """The part of a step's ticks in which a stage has nothing to do."""
        return self.schedule.bubble

    @property
    def bytes(self) -> int:
        """What the parameters take on each device."""
        return sum(row.bytes for row in self.rows)

    @property
    def gradients(self) -> int:
        """What the gradients take on each device: as much as the parameters."""
        return self.bytes

    @property
    def count(self) -> int:
        """How many numbers the parameters are."""
        return sum(math.prod(row.shape) for row in self.rows)

    @property
    def heading(self) -> tuple[str, str]:
        """The model, and the layout."""
        devices = "device" if self.layout.n_devices == 1 else "devices"
        on = f"layout {self.layout.spelling} on {self.layout.n_devices} {devices}"
        return self.model, on

    @property
    def grid(self) -> Grid:
        """Heading, rows and sums."""
        rows = [row.cells for row in self.rows]
        return Grid(HEADS, rows, left=4, before=self.heading, after=self._sums())

    def _sums(self) -> list[str]:
        counted = self.bytes + self.gradients + self.optimizer
        total = size_of(counted + self.activations)
        return [
            f"{len(self.rows)} parameters, {self.count:,} numbers{self._used()}",
            f"On each device: parameters {size_of(self.bytes)}, gradients "
            f"{size_of(self.gradients)}, optimizer state {size_of(self.optimizer)}; "
            f"together {size_of(counted)}",
            f"Activations, an estimate: {size_of(self.activations)} at the peak of a "
            f"step; with them {total}",
            *map(str, self.copied),
            *self._pipeline(),
            NOT_COUNTED,
        ]

    def _used(self) -> str:
        few = self.active < self.count
        return f", {self.active:,} of them for each token" if few else ""

    def _pipeline(self) -> list[str]:
        S, R = self.layout.n_stages, self.layout.n_rounds
        if S == 1:
            return []
        rounds = f" of {R} rounds" if R > 1 else ""
        return [
            f"Pipeline: {S} stages{rounds}, {self.microbatches} microbatches in "
            f"{self.schedule.n_ticks} ticks; in {self.bubble:.0%} of them a stage has "
            "nothing to do (the bubble)"
        ]

    def plot(self, path: str | Path | None = None) -> Any:
        """A matplotlib Figure: the devices' pieces of each parameter, and all bytes.

        path: where to write it, too, as PNG.

        Raises:
          UserError: matplotlib is not installed, or the file cannot be written.
        """
        from jaxpar.look import figures, picture

        return figures.written(picture.draw(self), path)

    def to_json(self) -> dict[str, Any]:
        """The same as one object, sizes in bytes on each device."""
        return {
            "model": self.model,
            "layout": self.layout.spelling,
            "devices": self.layout.n_devices,
            "parameters": [dataclasses.asdict(row) for row in self.rows],
            "count": self.count,
            "active": self.active,
            "bytes": self.bytes,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations_estimate": self.activations,
            "copied": [dataclasses.asdict(each) for each in self.copied],
            "microbatches": self.microbatches,
            "bubble": self.bubble,
        }


@in_its_types
def show(
    experiment: Experiment,
    layout: Layout | str | None = None,
    *,
    devices: int | None = None,
    classes: tuple[type, ...] = (),
) -> Table:
    """What each device holds of an experiment under its layout, or under another one.

    devices: CPU devices for which layout=auto is chosen. classes: those which
    config.json of a fine-tune's source names and jaxpar lacks.

    Raises:
      UserError: the layout cannot split a parameter, or the batch.
    """
    if isinstance(experiment, Finetune):
        source = RunDir(experiment.start_from)
        experiment = experiment.with_model_of(lambda: source.open(*classes))
    wanted = layout_for(experiment, devices) if layout is None else as_layout(layout)
    experiment = dataclasses.replace(experiment, layout=wanted)
    recipe = experiment.recipe()
    rows = sorted(_rows(recipe, wanted), key=lambda row: (-row.bytes, row.path))
    return Table(
        describe(experiment.model),
        wanted,
        tuple(rows),
        state_bytes(recipe, wanted).optimizer,
        activation_bytes(experiment),
        tuple(_copied(experiment, recipe, wanted, rows)),
        microbatches(wanted, experiment.microbatches, experiment.data.batch_size),
        _active(experiment.model, rows),
    )


def _active(model: ModelConfig, rows: list[Row]) -> int:
    """How many numbers are used for each token: of experts, those that it chooses."""
    fields = fields_of(model)
    k, n = fields.get("top_k", 1), fields.get("n_experts", 1)
    numbers = (
        math.prod(row.shape) * (k if "experts" in row.axes else n) for row in rows
    )
    return sum(numbers) // n


def _rows(recipe: Recipe, layout: Layout) -> Iterator[Row]:
    names = flatten(recipe.anatomy.names)
    for path, array in flatten(recipe.anatomy.shapes).items():
        piece = layout.piece(array.shape, names[path])
        n_bytes = math.prod(piece) * array.dtype.itemsize
        used = _splitting(layout, names[path], "stored")
        copied = tuple(a for a, n in layout.sizes.items() if n > 1 and a not in used)
        yield Row(path, names[path], array.shape, piece, n_bytes, copied)


def _splitting(layout: Layout, names: tuple[str, ...], which: str) -> set[str]:
    return {axis for dim in layout.split(names, which) for axis in dim}


def _copied(
    experiment: Experiment, recipe: Recipe, layout: Layout, rows: list[Row]
) -> Iterator[Copied]:
    present = layout.spelling
    for axis in layout.sizes:
        copied = [row for row in rows if axis in row.copied]
        if not copied:
            continue
        layouts = {present: layout, **_others(experiment, recipe, layout, axis)}
        held = {"parameters": {}, "optimizer state": {}}
        for word, other in layouts.items():
            held["parameters"][word] = sum(row.bytes_under(other) for row in copied)
            held["optimizer state"][word] = state_bytes(recipe, other).optimizer
        if any(axis in _splitting(layout, row.axes, "optimizer") for row in rows):
            del held["optimizer state"]  # Not all of it is copied.
        for what, found in held.items():
            best = min(found, key=found.__getitem__)  # The present one, if equal.
            word = best if best != present else ""
            yield Copied(what, axis, found[present], word, found[best])


def _others(
    experiment: Experiment, recipe: Recipe, layout: Layout, axis: str
) -> dict[str, Layout]:
    """Layouts with zero1 or fsdp in an axis's place, which fit and hold no more."""
    found: dict[str, Layout] = {}
    words = dict(part.split("=") for part in layout.spelling.split(","))
    ways = math.prod(int(words.pop(word, 1)) for word in DATA_WORDS)
    if axis != "data":
        words.pop(layout.attention if axis == "context" else axis)
        ways *= layout.sizes[axis]
    # A layout without rounds cannot gather once a round.
    anyhow = dataclasses.replace(experiment, fsdp_gathers="microbatch")
    for word in ("zero1", "fsdp"):
        text = ",".join(f"{w}={n}" for w, n in {**words, word: ways}.items())
        with contextlib.suppress(UserError):
            other = Layout.parse(text)
            anyhow.check_layout(other)
            if sum(state_bytes(recipe, other)) <= sum(state_bytes(recipe, layout)):
                found[other.spelling] = other
    return found
