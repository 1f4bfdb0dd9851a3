r"""The picture of a layout's parallelism: who holds what, sends what to whom, and when.

The pictures in .github/pictures that the README shows under "Layouts" are made by

    for l in data=4 zero1=4 fsdp=4 tensor=4+sp ring=4 ulysses=4 stage=4x2 expert=4 \
        fsdp=2,ring=2,tensor=2; do
      case $l in expert*) e=moe n=4 ;; *) e=quickstart n=8 ;; esac
      jaxpar show experiments/$e.py --layout $l --model.n-layers $n \
        --plot-layout .github/pictures/$(echo $l | tr -d =+ | tr , _).png
    done
"""

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpar.experiment import Experiment
from jaxpar.look import figures
from jaxpar.look.figures import COLORS, INK, PAPER
from jaxpar.look.held import held, places, spans, spelled
from jaxpar.look.picture import draw_clock
from jaxpar.look.sent import EXCHANGED, GATHERED, PASSED, REDUCED, Sent, sent, words
from jaxpar.look.show import Row, Table, show
from jaxpar.partition.layout import Layout
from jaxpar.pipeline.layer_order import LAYERS

MOST_DEVICES, COLUMNS = 16, 4
MOST_CELLS = 8
"""Layers or experts up to which each is drawn; of more, those that are held alike."""
MOST_KINDS = 3
"""Kinds of parameters that are drawn."""
INCHES, CHARACTERS = 1.72, 13
"""Width of a device, and characters of the heading that an inch takes."""
ABSENT = "#e0ddd3"
OF_TOKENS, OF_PARAMETERS, OF_OPTIMIZER = COLORS[1], COLORS[0], COLORS[6]
OF_KIND = {
    REDUCED: COLORS[5], GATHERED: COLORS[4], PASSED: COLORS[2], EXCHANGED: "#8a5a9e",
}  # fmt: skip
TOKENS = ("batch", "seq", "embed")


def plot_layout(
    experiment: Experiment,
    layout: Layout | str | None = None,
    path: str | Path | None = None,
) -> Any:
    """A matplotlib Figure of who holds what, sends what to whom, and when.

    layout: another one than the experiment's. path: where to write it, too, as PNG.

    Raises:
      UserError: the layout cannot split the experiment, matplotlib is not installed, or
        the file cannot be written.
    """
    data = experiment.data
    figure = draw(show(experiment, layout), data.batch_size, data.seq_len)
    return figures.written(figure, path)


@dataclasses.dataclass(frozen=True)
class Card:
    """What is drawn of one device: indices of the batch's rows, tokens and parameters.

    parameters, optimizer: of each parameter that is drawn, along each of its axes.
    """

    name: str
    rows: np.ndarray
    tokens: np.ndarray
    parameters: tuple[tuple[np.ndarray, ...], ...]
    optimizer: tuple[tuple[np.ndarray, ...], ...]


def kinds(table: Table) -> list[Row]:
    """The largest parameters of each kind: those that have other axes than the rest."""
    found: dict[frozenset[str], Row] = {}
    for row in sorted(table.rows, key=_rank):
        alike = frozenset({"kv_heads": "heads"}.get(name, name) for name in row.axes)
        if len(_matrix(row)) == 2:
            found.setdefault(alike, row)
    largest = [*found.values()][:MOST_KINDS]
    return sorted(largest, key=lambda row: (LAYERS in row.axes, row.path))


def _rank(row: Row) -> tuple[int, bool, str]:
    """Large parameters first; of those of one size, queries before keys."""
    return -math.prod(row.shape), "kv_heads" in row.axes, row.path


def cards(table: Table, batch_size: int, seq_len: int) -> list[Card]:
    """What each device holds, or each of the first MOST_DEVICES."""
    layout, drawn = table.layout, kinds(table)
    shape = (batch_size, seq_len, 1)
    batch = [
        held(layout, TOKENS[:2], shape[:2], "computed", MOST_DEVICES),
        *(
            held(layout, row.axes, row.shape, which, MOST_DEVICES)
            for which in ("stored", "optimizer")
            for row in drawn
        ),
    ]
    found = []
    for i, place in enumerate(places(layout, MOST_DEVICES)):
        at = zip(words(layout).values(), place, strict=True)
        (rows, tokens), *weights = (pieces[i] for pieces in batch)
        name = f"device {i}\n{', '.join(f'{word} {n}' for word, n in at)}"
        half = len(drawn)
        found.append(
            Card(name, rows, tokens, tuple(weights[:half]), tuple(weights[half:]))
        )
    return found


def draw(table: Table, batch_size: int, seq_len: int) -> Any:
    """A Figure of a `show` table: a card for each device, then what they send.

    batch_size, seq_len: rows of a step, and tokens of a row. Of a pipeline there is its
    clock, too.
    """
    layout, found = table.layout, cards(table, batch_size, seq_len)
    messages = sent(layout, table.rows, MOST_DEVICES)
    across = min(COLUMNS, len(found))
    down = math.ceil(len(found) / across)
    right = math.ceil(len(messages) / down)
    has_clock = layout.n_stages > 1
    heights = [1.5 * INCHES] * down + [0.28 * layout.n_stages + 0.45] * has_clock
    width = max(INCHES * (across + right), 5 * INCHES)
    figure = figures.new(width, sum(heights) + 0.75)
    grid = figure.add_gridspec(len(heights), across + right, height_ratios=heights)
    for i, card in enumerate(found):
        panel = figure.add_subplot(grid[divmod(i, across)])
        _card(panel, card, table, (batch_size, seq_len))
    for i, message in enumerate(messages):
        panel = figure.add_subplot(grid[i // right, across + i % right])
        _graph(panel, message, len(found))
    if has_clock:
        draw_clock(figure.add_subplot(grid[down, :]), table.schedule)
    lines = _heading(table, len(found)).splitlines()
    wrapped = [textwrap.fill(line, int(CHARACTERS * width)) for line in lines]
    figure.suptitle("\n".join(wrapped), color=INK, fontsize=9)
    return figure


def _heading(table: Table, n_drawn: int) -> str:
    few = table.layout.n_devices > n_drawn
    first = f"; the first {n_drawn} are drawn" if few else ""
    weights = [row.path for row in kinds(table)]
    named = " and ".join(filter(None, [", ".join(weights[:-1]), *weights[-1:]]))
    return (
        f"{table.heading[1]}{first}\nOn each device: rows (down) and tokens (across)"
        f"; below, parts of {named}"
    )


def _matrix(row: Row) -> list[int]:
    """The two dimensions that a parameter is drawn in, down and across; or fewer."""
    rest = [i for i, name in enumerate(row.axes) if name not in (LAYERS, "experts")]
    return sorted(rest, key=lambda i: row.axes[i] != "embed")[:2]


def _card(panel: Any, card: Card, table: Table, shape: tuple[int, int]) -> None:
    """Draws one device in a panel of 10 x 15."""
    figures.plain(panel, frame=())
    panel.set(xlim=(0, 10), ylim=(15, 0), xticks=[], yticks=[])
    panel.set_title(card.name, color=INK, fontsize=7.5, pad=2)
    box = (0, 0, 10, 3.4)
    _rectangles(panel, box, card.rows, card.tokens, shape, OF_TOKENS)
    said = {"ha": "center", "va": "top", "color": INK, "fontsize": 6.5}
    texts = f"rows {spelled(card.rows)}\ntokens {spelled(card.tokens)}"
    panel.text(5, 3.6, texts, **said)
    drawn = kinds(table)
    for left, pieces, color in (
        (0, card.parameters, OF_PARAMETERS),
        (5.3, card.optimizer, OF_OPTIMIZER),
    ):
        _weights(panel, left, drawn, pieces, color, table.layout)
    for middle, what in ((2.35, "parameters"), (7.65, "optimizer state")):
        panel.text(middle, 6.7, what, **{**said, "va": "bottom"})
    panel.text(5, 13.9, _numbers(drawn, card), **said)


def _numbers(drawn: Sequence[Row], card: Card) -> str:
    """Which layers and experts a device has, in words."""
    texts = {}
    for row, pieces in zip(drawn, card.parameters, strict=True):
        for name, size, indices in zip(row.axes, row.shape, pieces, strict=True):
            if name in (LAYERS, "experts"):
                whole = len(indices) == size
                texts[name] = f"all {name}" if whole else f"{name} {spelled(indices)}"
    return ", ".join(texts.values())


def _weights(panel, left, drawn, pieces, color, layout: Layout) -> None:
    """Draws parameters 4.7 wide: those outside the stack, then layer by layer."""
    outside = [i for i, row in enumerate(drawn) if LAYERS not in row.axes]
    inside = [i for i in range(len(drawn)) if i not in outside]
    top = 6.8
    for i in outside:
        _weight(panel, (left, top, 4.7, 1.3), drawn[i], pieces[i], color)
        top += 1.5
    for i, each in enumerate(inside):
        row, width = drawn[each], 4.7 / len(inside)
        depth = row.axes.index(LAYERS)
        cells = _cells(row, LAYERS, layout.n_stages * layout.n_rounds)
        height = (13.7 - top) / len(cells)
        for k, layers in enumerate(cells):
            has = np.isin(layers, pieces[each][depth]).any()
            box = (left + i * width, top + k * height, width, height)
            _experts(panel, box, row, pieces[each] if has else None, color, layout)


def _cells(row: Row, name: str, ways: int) -> list[np.ndarray]:
    """The numbers along an axis, apart, or together with those that are held alike."""
    size = row.shape[row.axes.index(name)]
    return np.array_split(np.arange(size), size if size <= MOST_CELLS else ways)


def _experts(panel, box, row: Row, pieces, color, layout: Layout) -> None:
    """Draws one layer of a parameter, whose experts stand beside each other."""
    x, y, width, height = box
    x, y, width, height = x + 0.08, y + 0.06, width - 0.16, height - 0.12
    if "experts" not in row.axes:
        _weight(panel, (x, y, width, height), row, pieces, color)
        return
    at = row.axes.index("experts")
    ways = row.shape[at] // layout.piece(row.shape, row.axes)[at]
    cells = _cells(row, "experts", ways)
    for k, experts in enumerate(cells):
        has = pieces is not None and np.isin(experts, pieces[at]).any()
        each = width / len(cells)
        cell = (x + k * each, y, each - 0.06, height)
        _weight(panel, cell, row, pieces if has else None, color)


def _weight(panel, box, row: Row, pieces, color) -> None:
    """Draws one matrix, of which a device has `pieces`, or nothing."""
    down, across = _matrix(row)
    nothing = np.array([], int)
    rows, columns = (pieces[down], pieces[across]) if pieces else (nothing, nothing)
    shape = row.shape[down], row.shape[across]
    _rectangles(panel, box, rows, columns, shape, color)


def _rectangles(panel, box, rows, columns, shape, color) -> None:
    """Draws a matrix, and in it the part that has these rows and columns."""
    from matplotlib.patches import Rectangle

    x, y, width, height = box
    panel.add_patch(Rectangle((x, y), width, height, facecolor=ABSENT))
    if not (len(rows) and len(columns)):
        return
    for top, bottom in spans(rows):
        for first, end in spans(columns):
            corner = x + width * first / shape[1], y + height * top / shape[0]
            size = width * (end - first) / shape[1], height * (bottom - top) / shape[0]
            panel.add_patch(Rectangle(corner, *size, facecolor=color))


def _graph(panel: Any, message: Sent, n: int) -> None:
    """Draws devices in a circle, and arrows from senders to receivers."""
    figures.plain(panel, frame=())
    panel.set(xlim=(-1.35, 1.35), ylim=(-1.35, 1.35), xticks=[], yticks=[])
    panel.set_aspect("equal")
    color = OF_KIND[message.kind]
    lines = message.what.replace(", ", ",\n").splitlines()
    title = "\n".join(textwrap.fill(line, 23) for line in lines)
    panel.set_title(title, color=color, fontsize=7.5, pad=2, weight="bold")
    panel.set_xlabel(message.how, color=INK, fontsize=6.5, labelpad=1)
    angles = np.pi / 2 - 2 * np.pi * np.arange(n) / n
    at = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for sender, receiver in sorted(message.pairs):
        both = (receiver, sender) in message.pairs
        if both and sender > receiver:
            continue
        panel.annotate(
            "",
            at[receiver],
            at[sender],
            arrowprops={
                "arrowstyle": "<|-|>" if both else "-|>",
                "color": color,
                "shrinkA": 7,
                "shrinkB": 7,
                "linewidth": 1.0,
                "mutation_scale": 7,
            },
        )
    for i, place in enumerate(at):
        panel.text(
            *place, str(i), ha="center", va="center", fontsize=7, color=INK,
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": PAPER, "edgecolor": INK},
        )  # fmt: skip
