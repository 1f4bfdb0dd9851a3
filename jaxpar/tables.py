"""Tables of text: plain for a file, drawn for a terminal, HTML for a notebook."""

import abc
import dataclasses
import functools
import html
import sys
from collections.abc import Sequence
from typing import Any, TextIO

Cells = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Grid:
    """Rows of cells under heads, with lines of text before and after.

    left: how many of the first columns are aligned to the left; the rest, to the right.
    """

    heads: Cells
    rows: Sequence[Cells]
    left: int = 1
    before: Sequence[str] = ()
    after: Sequence[str] = ()

    def __str__(self) -> str:
        table = [tuple(map(_on_one_line, row)) for row in (self.heads, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = (self._aligned(cells, widths) for cells in table)
        parts = ["\n".join(self.before), "\n".join(lines), "\n".join(self.after)]
        return "\n\n".join(part for part in parts if part)

    def html(self) -> str:
        """The same as HTML, in which texts keep their lines."""
        head = _html_row("th", self.heads)
        body = "".join(_html_row("td", row) for row in self.rows)
        kind = f"left-{self.left}"
        cells = f".{kind} :is(td, th):nth-child(-n+{self.left})"
        style = f"<style>{cells} {{text-align: left; white-space: pre-wrap}}</style>"
        parts = f"<thead>{head}</thead><tbody>{body}</tbody>"
        table = f'{style}<table class="{kind}">{parts}</table>'
        before, after = (
            "<br>".join(map(html.escape, part)) for part in (self.before, self.after)
        )
        return f"<p>{before}</p>{table}<p>{after}</p>".replace("<p></p>", "")

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for i, head in enumerate(self.heads):
            table.add_column(
                Text(head),
                justify="left" if i < self.left else "right",
                overflow="fold",
            )
        for row in self.rows:
            table.add_row(*map(Text, row))
        before, after = (map(Text, part) for part in (self.before, self.after))
        return Group(*before, table, *after)

    def _aligned(self, cells: Cells, widths: Sequence[int]) -> str:
        return "  ".join(
            cell.ljust(width) if i < self.left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()


class Report(abc.ABC):
    """What is shown as a grid: plain by `str`, drawn by rich, as HTML in a notebook."""

    @property
    @abc.abstractmethod
    def grid(self) -> Grid:
        """Heads and rows, with the lines around them."""

    @abc.abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The same as one object, as `--json` prints it."""

    def __str__(self) -> str:
        return str(self.grid)

    def __rich__(self) -> Any:
        return self.grid

    def _repr_html_(self) -> str:
        return self.grid.html()

    # Not _repr_pretty_: IPython prefers the __repr__ of a dataclass derived from this.
    def _repr_mimebundle_(self, **which: Any) -> dict[str, str]:
        return {"text/plain": str(self)}


def print_report(report: Report) -> None:
    """Prints a report: drawn where a person looks at a terminal, else plain."""
    if not sys.stdout.isatty():
        print(report)
        return
    import rich

    rich.print(report)


def size_of(n_bytes: float) -> str:
    """A number of bytes as a person reads it.

    >>> [size_of(n) for n in (512, 100_000, 20_000_000, 700_000_000)]
    ['0.5 KiB', '97.7 KiB', '19.1 MiB', '0.65 GiB']
    """
    for unit, power, digits in (("GiB", 30, 2), ("MiB", 20, 1)):
        if n_bytes >= 2**power / 10:
            return f"{n_bytes / 2**power:.{digits}f} {unit}"
    return f"{n_bytes / 2**10:.1f} KiB"


def _on_one_line(cell: str) -> str:
    return "\\n".join(cell.splitlines())


def _html_row(tag: str, cells: Cells) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"


def for_messages() -> TextIO:
    """Where messages go: standard error, but in a notebook, where it is a red box."""
    in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
    return sys.stdout if in_notebook else sys.stderr


@functools.cache
def say_once(text: str, *, is_first: bool = True) -> None:
    """A line for messages, unless this process has printed it before.

    is_first: whether this is the process that prints for all.
    """
    if is_first:
        print(text, file=for_messages())
