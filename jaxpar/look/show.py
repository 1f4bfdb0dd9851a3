"""What every device holds of an experiment's state, allocating nothing."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from jaxpar.experiment import Experiment, Finetune
from jaxpar.models.describe import describe
from jaxpar.partition.layout import Layout, as_layout
from jaxpar.run.directory import RunDir
from jaxpar.tables import Cells, Grid, Report, size_of
from jaxpar.tree import flatten

HEADS = ("parameter", "axes", "shape", "on each device", "bytes")
NOT_COUNTED = (
    "Not counted: activations, batches, and what a step needs for a time (gathered "
    "weights, buffers)."
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter: its axes, shape, the piece and bytes on each device.

    spare: mesh axes that do not split it, though they divide one of its dimensions.
    """

    path: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    piece: tuple[int, ...]
    bytes: int
    spare: tuple[str, ...]

    @property
    def cells(self) -> Cells:
        """As texts."""
        pieces = str(self.shape), str(self.piece), size_of(self.bytes)
        return self.path, " ".join(self.axes), *pieces


@dataclasses.dataclass(frozen=True)
class Table(Report):
    """Parameters under a layout, the largest piece first; text, HTML or JSON.

    optimizer: bytes of the optimizer's state on each device.
    """

    model: str
    layout: Layout
    rows: tuple[Row, ...]
    optimizer: int

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
    def replicated(self) -> dict[str, int]:
        """Mesh axis to the bytes on each device that it copies but could split."""
        found = {
            axis: sum(row.bytes for row in self.rows if axis in row.spare)
            for axis in self.layout.sizes
        }
        return {axis: size for axis, size in found.items() if size}

    @property
    def grid(self) -> Grid:
        """Heading, rows and sums."""
        devices = "device" if self.layout.n_devices == 1 else "devices"
        heading = (
            self.model,
            f"layout {self.layout.spelling} on {self.layout.n_devices} {devices}",
        )
        rows = [row.cells for row in self.rows]
        return Grid(HEADS, rows, left=4, before=heading, after=self._sums())

    def _sums(self) -> list[str]:
        total = self.bytes + self.gradients + self.optimizer
        lines = [
            f"{len(self.rows)} parameters, {self.count:,} numbers",
            f"On each device: parameters {size_of(self.bytes)}, gradients "
            f"{size_of(self.gradients)}, optimizer state {size_of(self.optimizer)}; "
            f"together {size_of(total)}",
        ]
        for axis, size in self.replicated.items():
            lines.append(
                f"{size_of(size)} of the parameters is copied "
                f"{self.layout.sizes[axis]} times over {axis}, which could split it"
            )
        return [*lines, NOT_COUNTED]

    def to_json(self) -> dict[str, Any]:
        """The same as one object, sizes in bytes on each device."""
        return {
            "model": self.model,
            "layout": self.layout.spelling,
            "devices": self.layout.n_devices,
            "parameters": [dataclasses.asdict(row) for row in self.rows],
            "count": self.count,
            "bytes": self.bytes,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "replicated": self.replicated,
        }


def show(
    experiment: Experiment,
    layout: Layout | str | None = None,
    *,
    classes: tuple[type, ...] = (),
) -> Table:
    """The state of an experiment under its layout, or under another one.

    classes: those which config.json of a fine-tune's source names and jaxpar lacks.

    Raises:
      UserError: the layout cannot split a parameter, or the batch.
    """
    if isinstance(experiment, Finetune):
        source = RunDir(experiment.start_from)
        experiment = experiment.with_model_of(lambda: source.open(*classes))
    if layout is not None:
        experiment = dataclasses.replace(experiment, layout=as_layout(layout))
    rows = sorted(_rows(experiment), key=lambda row: (-row.bytes, row.path))
    return Table(
        describe(experiment.model),
        experiment.layout,
        tuple(rows),
        _optimizer_bytes(experiment),
    )


def _rows(experiment: Experiment) -> Iterator[Row]:
    layout, anatomy = experiment.layout, experiment.recipe().anatomy
    names = flatten(anatomy.names)
    for path, array in flatten(anatomy.shapes).items():
        for which in ("stored", "optimizer", "computed"):
            layout.check(path, array.shape, names[path], which)
        piece = layout.piece(array.shape, names[path])
        n_bytes = math.prod(piece) * array.dtype.itemsize
        spare = _spare(layout, names[path], piece)
        yield Row(path, names[path], array.shape, piece, n_bytes, spare)


def _optimizer_bytes(experiment: Experiment) -> int:
    """Bytes of the optimizer's state on each device."""
    recipe, layout = experiment.recipe(), experiment.layout
    names = flatten(recipe.anatomy.names)
    state = recipe.abstract(layout).opt_state
    total = 0
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        path = recipe.parameter_of(keys, leaf)
        shape = leaf.shape
        if path is not None:
            shape = layout.piece(shape, names[path], "optimizer")
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def _spare(
    layout: Layout, names: tuple[str, ...], piece: tuple[int, ...]
) -> tuple[str, ...]:
    used = {axis for dim in layout.split(names, "stored") for axis in dim}
    # The scan walks over layers: they are no dimension to split.
    sizes = [n for name, n in zip(names, piece, strict=True) if name != "layers"]
    return tuple(
        axis
        for axis, ways in layout.sizes.items()
        if ways > 1 and axis not in used and any(n % ways == 0 for n in sizes)
    )
