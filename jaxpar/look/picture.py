"""The picture of a layout: which piece of each parameter every device holds."""

import math
from typing import Any

import numpy as np

from jaxpar.look import figures
from jaxpar.look.figures import COLORS, INK, PAPER
from jaxpar.look.held import spelled
from jaxpar.partition.layout import Layout
from jaxpar.pipeline.layer_order import layer_order
from jaxpar.pipeline.ticks import Schedule
from jaxpar.tables import size_of

MOST_PANELS, COLUMNS = 16, 4
LIGHT = (0.299, 0.587, 0.114)
"""How light red, green and blue look."""
MOST_LABELS, MOST_CELLS = 8, 64
"""Devices up to which each has a label (the indices that it holds), or a border."""


def pieces(layout: Layout, names: tuple[str, ...]) -> np.ndarray:
    """The number of the piece that each device of the mesh holds of an array.

    Devices with the same number hold copies of the same numbers.
    """
    sizes = layout.sizes
    places = dict(zip(sizes, np.indices(tuple(sizes.values())), strict=True))
    number = np.zeros(tuple(sizes.values()), int)
    for dim in layout.split(names, "stored"):
        for axis in dim:
            number = number * sizes[axis] + places[axis]
    return number


def draw(table: Any) -> Any:
    """A Figure of a `show` table: a panel for each parameter, then bars of bytes.

    A panel has a cell for each device: the last mesh axis downwards, the others to the
    right. Of more than MOST_PANELS parameters the largest are drawn. Of a pipeline
    there is its clock, too.
    """
    rows = table.rows[:MOST_PANELS]
    lines = math.ceil(len(rows) / COLUMNS)
    below = [1.35, 1.2] if table.layout.n_stages > 1 else [1.35]
    figure = figures.new(11, 0.55 + sum(below) + 1.15 * lines)
    grid = figure.add_gridspec(
        lines + len(below), COLUMNS, height_ratios=[*[1.0] * lines, *below]
    )
    for i, row in enumerate(rows):
        _panel(figure.add_subplot(grid[divmod(i, COLUMNS)]), row, table.layout, i == 0)
    _bars(figure.add_subplot(grid[lines, :]), table)
    if table.layout.n_stages > 1:
        draw_clock(figure.add_subplot(grid[lines + 1, :]), table.schedule)
    more = len(table.rows) - len(rows)
    rest = f"; {more} smaller parameters are not drawn" if more else ""
    model, on = table.heading
    figure.suptitle(
        f"{model}\n{on}: devices of one colour hold the same piece{rest}",
        color=INK, fontsize=9,
    )  # fmt: skip
    return figure


def _panel(panel: Any, row: Any, layout: Layout, first: bool) -> None:
    numbers, mesh_axes = pieces(layout, row.axes), [*layout.sizes]
    grid = (
        numbers.reshape(-1, numbers.shape[-1]).T
        if len(mesh_axes) > 1
        else numbers[None]
    )
    # Colours in the order of the picture, so that panels split alike look alike.
    _, firsts, inverse = np.unique(grid, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(firsts))[inverse.reshape(grid.shape)]
    colors, dark = _colors(len(firsts))
    panel.imshow(colors[order], aspect="auto", interpolation="nearest")
    figures.plain(panel, frame=())
    panel.set(xticks=[], yticks=[])
    ways = [n // piece for n, piece in zip(row.shape, row.piece, strict=True)]
    logical = zip(row.axes, ways, strict=True)
    split = [f"{name}/{n}" for name, n in logical if n > 1]
    said = f"{' '.join(split) or 'all on each'} · {size_of(row.bytes)}"
    said = f"{row.path[-30:]}\n{said}"
    panel.set_title(said, color=INK, fontsize=7.5, pad=3)
    if first:
        across = " × ".join(mesh_axes[:-1] if len(mesh_axes) > 1 else mesh_axes)
        panel.set_xlabel(f"{across} →", color=INK, fontsize=7.5, labelpad=1)
        down = f"← {mesh_axes[-1]}" if len(mesh_axes) > 1 else ""
        panel.set_ylabel(down, color=INK, fontsize=7.5)
    height, width = grid.shape
    if grid.size <= MOST_CELLS:
        panel.hlines(np.arange(height - 1) + 0.5, -0.5, width - 0.5, color=PAPER)
        panel.vlines(np.arange(width - 1) + 0.5, -0.5, height - 0.5, color=PAPER)
    if grid.size <= MOST_LABELS:
        for at, number in np.ndenumerate(grid):
            ink = "white" if dark[order[at]] else INK
            text = _range(row, ways, int(number), layout)
            style = {"ha": "center", "va": "center", "rotation": 90 * (width > 4)}
            panel.text(*at[::-1], text, color=ink, fontsize=6, **style)


def _range(row: Any, ways: list[int], number: int, layout: Layout) -> str:
    """The indices that a piece has along each dimension that is split."""
    ranges = []
    places = zip(row.axes, row.shape, np.unravel_index(number, ways), ways, strict=True)
    for name, size, place, n in places:
        if n > 1:
            held = layer_order(layout, size) if name == "layers" else np.arange(size)
            held = np.split(held, n)[place]
            ranges.append(spelled(held))  # One span for each round of a pipeline.
    return "\n".join(ranges) or "all"


def _colors(n: int) -> tuple[np.ndarray, list[bool]]:
    """n colours [n, 3], and which of them are dark."""
    import matplotlib
    from matplotlib.colors import to_rgb

    if n <= len(COLORS):
        found = np.array([to_rgb(color) for color in COLORS[:n]])
    else:
        found = matplotlib.colormaps["cividis"](np.linspace(0, 1, n))[:, :3]
    return found, [bool(x) for x in found @ LIGHT < 0.5]


def clock(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """What each stage computes in each tick: microbatches and rounds [stages, ticks].

    -1 in the bubble.
    """
    turns = np.arange(schedule.n_ticks) - np.arange(schedule.n_stages)[:, None]
    counts = (turns >= 0) & (turns < schedule.n_turns)
    numbers = schedule.microbatch_of(turns), schedule.round_of(turns)
    microbatches, rounds = (np.where(counts, each, -1) for each in numbers)
    return microbatches, rounds


def draw_clock(panel: Any, schedule: Schedule) -> None:
    """Draws the forward ticks of a pipeline: what each stage computes when."""
    numbers, rounds = clock(schedule)
    colors, _ = _colors(schedule.n_microbatches)
    # Each round is paler than the one before it.
    strength = 1 - rounds[..., None] / (1.5 * schedule.n_rounds)
    cells = 1 - (1 - colors[numbers]) * strength
    cells = np.where(numbers[..., None] >= 0, cells, 1.0)
    panel.imshow(cells, aspect="auto", interpolation="nearest")
    figures.plain(panel, frame=())
    panel.set(xticks=[], yticks=[])
    panel.set_ylabel("← stage", color=INK, fontsize=7.5)
    panel.set_xlabel("tick →", color=INK, fontsize=7.5, labelpad=1)
    for at, number in np.ndenumerate(numbers):
        if number >= 0 and numbers.size <= MOST_CELLS * 4:
            ink = "white" if cells[at] @ LIGHT < 0.5 else INK
            panel.text(*at[::-1], str(number), color=ink, fontsize=6, ha="center",
                       va="center")  # fmt: skip
    R = schedule.n_rounds
    rounds_said = f" in {R} rounds, each paler than the last" if R > 1 else ""
    panel.set_title(
        f"Forward passes of {schedule.n_microbatches} microbatches{rounds_said}, then "
        f"the backward ones in reverse; white is the bubble, {schedule.bubble:.0%} of "
        "all ticks",
        color=INK, fontsize=9,
    )  # fmt: skip


def _bars(panel: Any, table: Any) -> None:
    held = {
        "parameters": table.bytes,
        "gradients": table.gradients,
        "optimizer state": table.optimizer,
        "activations (estimate)": table.activations,
    }
    figures.plain(panel, frame=("left",))
    bars = panel.barh([*held], [*held.values()], color=COLORS[4], height=0.7)
    bars[-1].set(hatch="///", facecolor=COLORS[1], edgecolor=PAPER)
    texts = [size_of(n) for n in held.values()]
    panel.bar_label(bars, texts, padding=4, color=INK, fontsize=8)
    panel.invert_yaxis()
    panel.set(xticks=[], xlim=(0, 1.12 * max(held.values())))
    total = size_of(sum(held.values()))
    panel.set_title(f"On each device, {total} in all", color=INK, fontsize=9)
