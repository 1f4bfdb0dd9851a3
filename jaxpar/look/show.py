"""What every device holds of an experiment's parameters."""

import dataclasses
import html
import math
from collections.abc import Iterator

from jaxpar.checkpoint.run import RunDir
from jaxpar.config import paths
from jaxpar.experiment import FromSource
from jaxpar.partition.layout import Layout

KIB, MIB, GIB = 2**10, 2**20, 2**30
HEADS = ("parameter", "axes", "shape", "on each device", "bytes")


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
    def cells(self) -> tuple[str, ...]:
        pieces = str(self.shape), str(self.piece), _size(self.bytes)
        return self.path, " ".join(self.axes), *pieces


@dataclasses.dataclass(frozen=True)
class Table:
    """Parameters under a layout, the largest piece first; text, HTML or JSON."""

    layout: Layout
    rows: tuple[Row, ...]

    @property
    def bytes(self) -> int:
        """What the parameters take on each device."""
        return sum(row.bytes for row in self.rows)

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
    def footer(self) -> list[str]:
        lines = [
            f"{len(self.rows)} parameters, {self.count:,} numbers, "
            f"{_size(self.bytes, total=True)} on each device"
        ]
        for axis, size in self.replicated.items():
            ways = self.layout.sizes[axis]
            lines.append(
                f"{_size(size)} of it is copied {ways} times over {axis}, "
                "which could split it"
            )
        return lines

    def __str__(self) -> str:
        table = [row.cells for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [_aligned(cells, widths) for cells in table]
        return "\n".join(lines + [line.rjust(len(lines[0])) for line in self.footer])

    def _repr_html_(self) -> str:
        head = _tr("th", HEADS)
        body = "".join(_tr("td", row.cells) for row in self.rows)
        foot = "<br>".join(map(html.escape, self.footer))
        return f"<table><thead>{head}</thead><tbody>{body}</tbody></table><p>{foot}</p>"

    def to_json(self) -> dict:
        """The same as one object, sizes in bytes."""
        return {
            "layout": self.layout.spelling,
            "parameters": [dataclasses.asdict(row) for row in self.rows],
            "count": self.count,
            "bytes": self.bytes,
            "replicated": self.replicated,
        }


def show(run, layout: Layout | str | None = None, *, classes=()) -> Table:
    """The parameters of an experiment under its layout, or under another one.

    classes: those which config.json of a fine-tune's source names and jaxpar lacks.
    Raises ValueError where the layout cannot split a parameter, or the batch.
    """
    if isinstance(layout, str):
        layout = Layout.parse(layout)
    if isinstance(run.model, FromSource):
        source = RunDir(run.start_from).open(*classes)
        run = dataclasses.replace(run, model=source.model)
    run = dataclasses.replace(run, layout=layout or run.layout)
    rows = sorted(_rows(run), key=lambda row: (-row.bytes, row.path))
    return Table(run.layout, tuple(rows))


def _rows(run) -> Iterator[Row]:
    anatomy = run.recipe().anatomy
    names = paths(anatomy.names)
    for path, array in paths(anatomy.shapes).items():
        for which in ("stored", "optimizer", "computed"):
            run.layout.check(path, array.shape, names[path], which)
        piece = run.layout.piece(array.shape, names[path])
        size = math.prod(piece) * array.dtype.itemsize
        spare = _spare(run.layout, names[path], piece)
        yield Row(path, names[path], array.shape, piece, size, spare)


def _spare(layout: Layout, names, piece: tuple[int, ...]) -> tuple[str, ...]:
    used = {axis for dim in layout.split(names, "stored") for axis in dim}
    # The scan walks over layers: they are no dimension to split.
    sizes = [n for name, n in zip(names, piece, strict=True) if name != "layers"]
    return tuple(
        axis
        for axis, ways in layout.sizes.items()
        if ways > 1 and axis not in used and any(n % ways == 0 for n in sizes)
    )


def _size(n: int, total: bool = False) -> str:
    if total and n >= GIB / 100:
        return f"{n / GIB:.2f} GiB"
    return f"{n / MIB:.1f} MiB" if n >= MIB / 10 else f"{n / KIB:.1f} KiB"


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    *left, last = (cell.ljust(n) for cell, n in zip(cells, widths, strict=True))
    return "   ".join([*left, last.strip().rjust(widths[-1])])


def _tr(tag: str, cells) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"
