"""Figures of matplotlib in one style, legible on a light page and on a dark one."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxpar.errors import UserError

# Okabe and Ito, 2008: distinct for those who are colour-blind, too.
COLORS = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
    "#999999",
)  # fmt: skip
PAPER, INK = "#f4f3ef", "#22262b"
"""An opaque background, so that the page's own does not matter, and what is on it."""
DPI = 110


def new(width: float, height: float) -> Any:
    """An empty Figure of these inches, which a notebook shows as PNG.

    Raises:
      UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            f'Pictures need matplotlib ({error}): pip install -e ".[notebook]".'
        ) from error
    figure: Any = Figure((width, height), DPI, facecolor=PAPER, layout="constrained")
    # Without pyplot, which would show it twice, a notebook knows no other way.
    figure._repr_png_ = lambda: png(figure)
    return figure


def png(figure: Any) -> bytes:
    """The bytes of a small PNG file, of at most 128 colours."""
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", facecolor=PAPER)
    Image.open(drawn).convert("RGB").quantize(128).save(small, "png", optimize=True)
    return small.getvalue()


def written(figure: Any, path: str | Path | None) -> Any:
    """The figure, which is also written to a path, as PNG, if there is one.

    Raises:
      UserError: the file cannot be written.
    """
    if path is not None:
        try:
            Path(path).write_bytes(png(figure))
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    return figure


def plain(axes: Any, frame: Sequence[str] = ("left", "bottom")) -> None:
    """Draws axes with ink on paper, and only these sides of their frame."""
    axes.set_facecolor(PAPER)
    axes.tick_params(colors=INK, labelsize=8)
    for side, line in axes.spines.items():
        line.set(color=INK, visible=side in frame)
