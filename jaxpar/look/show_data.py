"""An experiment's data as it is found: counts of both parts, and windows as tokens."""

import dataclasses
import html
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpar.data.order import order
from jaxpar.data.prepare import Prepared, in_words
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.data.tokenizer import load as load_tokenizer
from jaxpar.data.windows import Window
from jaxpar.errors import UserError
from jaxpar.experiment import Experiment, Finetune
from jaxpar.run.adoption import with_added_tokens
from jaxpar.run.directory import RunDir
from jaxpar.tables import Grid

N_WINDOWS = 3
MOST_TOKENS = 256
"""Of a longer window, so many are shown."""
BEGIN, END, LINE_END = "┃", "∎", "↵"
LEGEND = f"{BEGIN} begins and {END} ends a document, {LINE_END} a line"
# Blue and orange, which colour-blind readers tell apart: light ones under black in a
# terminal, whatever its colours are; in a notebook such that its own shine through.
ANSI = ("black on #a6cee3", "black on #fdbf6f", "dim")
CSS = ("background:rgba(0,114,178,.25)", "background:rgba(230,159,0,.3)", "opacity:.6")
UNSCORED = 2
PRE = "white-space:pre-wrap; font-family:monospace; margin:0 0 1em"
HEADS = ("part", "items", "tokens", "bytes", "bytes/token", "windows")


class Token(NamedTuple):
    """A token: its text as it is shown, its style (0, 1 by turns, UNSCORED), its id."""

    text: str
    style: int
    id: int


@dataclasses.dataclass(frozen=True)
class DataShown:
    """What was found; plain by `str`, coloured in a terminal and in a notebook."""

    description: dict[str, Any]
    """Source and counts, as the receipt of a run has them."""
    windows: dict[int, list[Token]]
    """The tokens of the first rows of training, by the numbers of their windows."""

    @property
    def grid(self) -> Grid:
        """The counts of both parts."""
        return Grid(
            HEADS,
            [_cells(name, self.description[name]) for name in ("train", "heldout")],
            before=(in_words(self.description),),
        )

    def to_json(self) -> dict[str, Any]:
        """The same as one object; a token's weight is 1 or 0."""
        windows = [
            {
                "window": number,
                "ids": [token.id for token in tokens],
                "texts": [token.text for token in tokens],
                "weights": [int(token.style != UNSCORED) for token in tokens],
            }
            for number, tokens in self.windows.items()
        ]
        return {**self.description, "shown": windows}

    def __str__(self) -> str:
        legend = f"Tokens stand between |, those of weight 0 in ‹›; {LEGEND}."
        shown = (f"{name}\n{_plain(some)}" for name, some in self._named())
        return "\n\n".join([str(self.grid), legend, *shown])

    def __rich__(self) -> Any:
        from rich.console import Group
        from rich.text import Text

        if os.environ.get("NO_COLOR"):
            return Text(str(self))
        shown = [Text(f"\nColoured tokens are scored; {LEGEND}.")]
        for name, tokens in self._named():
            pieces = [(token.text, ANSI[token.style]) for token in tokens]
            shown += [Text(f"\n{name}"), Text.assemble(*pieces)]
        return Group(self.grid, *shown)

    def _repr_html_(self) -> str:
        shown = f"<p>Coloured tokens are scored; {LEGEND}.</p>"
        for name, tokens in self._named():
            spans = (
                f'<span style="{CSS[t.style]}" title="{t.id}">{html.escape(t.text)}'
                "</span>"
                for t in tokens
            )
            pre = f'<pre style="{PRE}">{"".join(spans)}</pre>'
            shown += f"<p><b>{name}</b></p>{pre}"
        return self.grid.html() + shown

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _named(self) -> Iterator[tuple[str, list[Token]]]:
        for number, tokens in self.windows.items():
            yield (
                f"Window {number:,} of {self.description['train']['windows']:,}",
                tokens,
            )


def show_data(
    experiment: Experiment, *, classes: tuple[type, ...] = (), progress: bool = True
) -> DataShown:
    """What an experiment trains on, prepared first where it is not yet.

    classes: those which config.json of a fine-tune's source names and jaxpar lacks.

    Raises:
      UserError: as the data's `prepare`.
    """
    found = prepared_data(experiment, classes=classes, progress=progress)
    numbers = order(experiment.seed, 0, N_WINDOWS, len(found.train))
    windows = {int(i): [*_tokens(found.train[i], found.tokenizer)] for i in numbers}
    return DataShown(found.description, windows)


def prepared_data(
    experiment: Experiment, *, classes: tuple[type, ...] = (), progress: bool = True
) -> Prepared:
    """An experiment's data; a fine-tune's with the tokenizer that it will have."""
    if not isinstance(experiment, Finetune):
        return experiment.data.prepare(progress=progress)
    source = RunDir(experiment.start_from)
    if not source.exists():
        raise UserError(
            f"{source.path} is not a run, and a fine-tune takes its tokenizer from "
            "one: say which by --start-from RUN."
        )
    tokenizer = load_tokenizer(source.tokenizer_dir)
    if experiment.add_tokens:
        experiment = experiment.with_model_of(lambda: source.open(*classes))
        tokenizer = with_added_tokens(experiment, tokenizer)
    return experiment.data.prepare(tokenizer, progress=progress)


def _cells(name: str, part: dict[str, int]) -> tuple[str, ...]:
    items, tokens = part.get("documents", part["windows"]), part.get("tokens")
    tokens = part["scored"] if tokens is None else tokens
    per_token = f"{part['bytes'] / max(tokens, 1):.3f}"
    counts = (f"{n:,}" for n in (items, tokens, part["bytes"]))
    return name, *counts, per_token, f"{part['windows']:,}"


def _tokens(window: Window, tokenizer: Tokenizer) -> Iterator[Token]:
    """The first tokens of a window that are no padding."""
    n = min(int(np.count_nonzero(window.segments)), MOST_TOKENS)
    ids, turn = window.tokens[:n], 0
    for k, text in enumerate(_texts(ids, tokenizer)):
        begins = k == 0 or window.segments[k] != window.segments[k - 1]
        if ids[k] in (tokenizer.bos_id, tokenizer.eos_id):
            text = BEGIN if begins and ids[k] == tokenizer.bos_id else END
        turn = 1 - turn
        style = turn if window.weights[k] else UNSCORED
        yield Token(text.replace("\n", f"{LINE_END}\n"), style, int(ids[k]))


def _texts(ids: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    """The text of each id, as it is after the one before it."""
    before: Sequence[int] = []
    for i in ids.tolist():
        head, both = tokenizer.decode(before), tokenizer.decode([*before, i])
        follows = bool(head) and both.startswith(head)
        yield both[len(head) :] if follows else tokenizer.decode([i])
        before = [i]


def _plain(tokens: list[Token]) -> str:
    """Tokens without colours."""
    text, is_scored = "", True
    for token in tokens:
        now = token.style != UNSCORED
        mark = "|" if now == is_scored else "›" if now else "‹"
        text += (mark if text or not now else "") + token.text
        is_scored = now
    return text + ("" if is_scored else "›")
