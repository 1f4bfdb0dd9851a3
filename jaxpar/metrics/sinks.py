"""Where the rows of a run are written: a file, TensorBoard, the terminal."""

import json
import math
import numbers
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from jaxpar.errors import UserError

Row = dict[str, Any]


class JsonlSink:
    """Appends rows to a file, one JSON object a line; what JSON lacks becomes null.

    A line is on its way to the disk when `write` returns. A last line that a killed
    run left half written is cut off: its step is done again.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _mend(self.path)
        self._file = self.path.open("ab", buffering=0)

    def write(self, row: Row) -> None:
        line = json.dumps(_plain(row), allow_nan=False) + "\n"
        self._file.write(line.encode())

    def close(self) -> None:
        self._file.close()


class TensorBoardSink:
    """Writes the numbers of rows as scalars, each under `train/` or its split's name.

    Steps that an earlier run in the directory wrote, from the first one written here
    on, are hidden: after a resume the later value of a step counts.
    """

    def __init__(self, directory: str | os.PathLike):
        self._directory, self._writer = Path(directory), None

    def write(self, row: Row) -> None:
        step, room = row["step"], row.get("split", "train")
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._directory), purge_step=step)
        for name, value in row.items():
            if name != "step" and isinstance(value, numbers.Real):
                self._writer.add_scalar(f"{room}/{name}", float(value), step)
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Progress:
    """A bar with loss, tokens per second and time left; "compiling" until a first row.

    In a log file, where a bar would only be noise: a plain line every `every` steps,
    for each evaluation, and at the end.
    """

    def __init__(
        self,
        num_steps: int,
        *,
        start: int = 0,
        every: int = 1,
        file: TextIO | None = None,
    ):
        self._num_steps, self._every = num_steps, every
        self._file = file or sys.stderr
        self._bar, self._heldout = None, ""
        bar = _bar_class(self._file)
        if bar is None:
            self.say("compiling")
            return
        self._bar = bar(
            total=num_steps, initial=start, desc="compiling", file=self._file,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            dynamic_ncols=True,
        )  # fmt: skip

    def write(self, row: Row) -> None:
        step = row["step"]
        if "split" in row:
            self._heldout = f"{row['split']} {_short(row.get('nats_per_token'))}"
            if self._bar is None:
                self.say(f"step {step:,}: {self._heldout} nats/token")
            return
        text = summary(row, self._num_steps)
        if self._bar is not None:
            text = ", ".join(part for part in (text, self._heldout) if part)
            self._bar.set_description_str("training", refresh=False)
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self._every == 0 or step == self._num_steps:
            self.say(f"step {step:,}/{self._num_steps:,}: {text}")

    def say(self, text: str) -> None:
        """A line of its own, above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._file)
        else:
            print(text, file=self._file, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def summary(row: Row, num_steps: int) -> str:
    """A step in words: loss, tokens per second, time left.

    >>> row = {"step": 4, "loss": 2.5, "tokens": 4096, "seconds": 2.0}
    >>> summary(row, 50)
    'loss 2.500, 2.0k tok/s, 1:32 left'
    """
    parts = [f"loss {_short(row.get('loss'))}"]
    seconds = row.get("seconds")
    if seconds:
        parts.append(f"{_thousands(row['tokens'] / seconds)} tok/s")
        parts.append(f"{_clock((num_steps - row['step']) * seconds)} left")
    return ", ".join(parts)


def _short(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"


def _thousands(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar_class(file: TextIO) -> type | None:
    """tqdm's bar for a terminal or a notebook; None where neither shows it."""
    from tqdm.auto import tqdm
    from tqdm.notebook import tqdm_notebook

    in_notebook = issubclass(tqdm, tqdm_notebook)
    return tqdm if in_notebook or file.isatty() else None


def _plain(value: Any) -> Any:
    """The value as JSON has it: NumPy's numbers as Python's, NaN and infinity null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise UserError(
        f"{value!r} of type {type(value).__name__} cannot be written as JSON; fetch "
        "arrays from the device (jax.device_get) and pass numbers."
    )


def _mend(path: Path) -> None:
    """Cuts off, or ends, a last line that has no end."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        cut = content.rfind(b"\n") + 1
        if cut == len(content):
            return
        try:
            json.loads(content[cut:])
        except ValueError:
            file.truncate(cut)
        else:
            file.write(b"\n")
