"""Metric sinks: where a run's rows go (JSONL file, TensorBoard, terminal)."""

import json
import math
import numbers
import os
from pathlib import Path
from typing import Any, TextIO

from jaxpar.errors import UserError
from jaxpar.guard.time_account import clock
from jaxpar.metrics.event_file import EventFile, append
from jaxpar.tables import for_messages

Row = dict[str, Any]
"""Metrics of a step, by name; what has a "split" is of an evaluation, or of an event of
the user's own."""


class JsonlSink:
    """Appends rows to a file, one JSON object per line; NaN and infinity become null.

    The operating system has a line when `write` returns. An incomplete last line, of a
    run that was killed, is removed: the resumed run repeats its step.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _repair_last_line(self.path)
        self._file = self.path.open("ab", buffering=0)

    def write(self, row: Row) -> None:
        """Appends a row.

        Raises:
          OSError: the line could not be written; the file has no part of it.
        """
        line = json.dumps(_as_json(row), allow_nan=False) + "\n"
        append(self._file, line.encode())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardSink:
    """Writes numbers of rows, and the texts of those with a split, under its name.

    Those of training steps are named `train/...`.

    After a resume, what an earlier run in the directory wrote for the same steps is
    hidden, from the first step written here on.
    """

    def __init__(self, directory: str | os.PathLike[str]):
        self._directory = Path(directory)
        self._file: EventFile | None = None

    def write(self, row: Row) -> None:
        """Writes a row's values at its step.

        Raises:
          OSError: they could not be written.
        """
        step, group = row["step"], row.get("split", "train")
        if self._file is None:
            self._file = EventFile(self._directory, first_step=step)
        kinds = numbers.Real | str if "split" in row else numbers.Real
        values = {
            f"{group}/{name}": value if isinstance(value, str) else float(value)
            for name, value in row.items()
            if name not in ("step", "split", "objective_name")
            and isinstance(value, kinds)
        }
        self._file.write(step, values)

    def close(self) -> None:
        """Closes the file, if there is one."""
        if self._file is not None:
            self._file.close()


class Progress:
    """A progress bar with loss, tokens per second and time left.

    Until the first step's row it says what takes the time: the evaluation of step 0,
    compiling. Where neither a terminal nor a notebook
    shows a bar: a plain line every `every` steps, per evaluation, and at the end.
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
        self._file = file or for_messages()
        self._bar: Any = None
        self._heldout = ""
        self._begins = True
        bar = _bar_class(self._file)
        doing = "compiling the step" if start else "evaluating step 0"
        if bar is None:
            self.say(doing)
            return
        self._bar = bar(
            total=num_steps, initial=start, desc=doing, file=self._file,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            dynamic_ncols=True,
        )  # fmt: skip

    def write(self, row: Row) -> None:
        """Shows a row."""
        step = row["step"]
        if "split" in row and "nats_per_token" not in row:
            own = (f"{k}: {v}" for k, v in row.items() if k not in ("step", "split"))
            self.say(f"step {step:,}: {row['split']} {', '.join(own)}")
            return
        if "split" in row:
            self._heldout = f"{row['split']} {_decimals(row['nats_per_token'])}"
            beside = ""
            if "objective" in row:
                beside = f", {row['objective_name']} {_decimals(row['objective'])}"
            if self._bar is None:
                self.say(f"step {step:,}: {self._heldout} nats/token{beside}")
            self._heldout += beside
            if self._begins:
                self._say_compiling()
            return
        self._begins = False
        text = summary(row, self._num_steps)
        if self._bar is not None:
            text = ", ".join(part for part in (text, self._heldout) if part)
            self._bar.set_description_str("training", refresh=False)
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self._every == 0 or step == self._num_steps:
            self.say(f"step {step:,}/{self._num_steps:,}: {text}")

    def _say_compiling(self) -> None:
        self._begins = False
        if self._bar is None:
            self.say("compiling the step")
        else:
            self._bar.set_description_str("compiling the step")

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._file)
        else:
            print(text, file=self._file, flush=True)

    def close(self) -> None:
        """Closes the bar, if there is one."""
        if self._bar is not None:
            self._bar.close()


def summary(row: Row, num_steps: int) -> str:
    """A step's loss, tokens per second and time left, as text.

    >>> row = {"step": 4, "loss": 2.5, "tokens": 4096, "seconds": 2.0}
    >>> summary(row, 50)
    'loss 2.500, 2.0k tok/s, 1:32 left'
    """
    parts = [f"loss {_decimals(row.get('loss'))}"]
    seconds = row.get("seconds")
    if seconds:
        parts.append(f"{_thousands(row['tokens'] / seconds)} tok/s")
        parts.append(f"{clock((num_steps - row['step']) * seconds)} left")
    return ", ".join(parts)


def _decimals(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"


def _thousands(value: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def _bar_class(file: TextIO) -> type | None:
    """tqdm's bar for a terminal or a notebook; None where there is neither."""
    from tqdm.auto import tqdm
    from tqdm.notebook import tqdm_notebook

    in_notebook = issubclass(tqdm, tqdm_notebook)
    return tqdm if in_notebook or file.isatty() else None


def _as_json(value: Any) -> Any:
    """A value that JSON can hold: NumPy's numbers as Python's, NaN and infinity None.

    Raises:
      UserError: it is neither text nor number, nor a container of these.
    """
    if isinstance(value, dict):
        return {str(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_as_json(item) for item in value]
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


def _repair_last_line(path: Path) -> None:
    """Removes a last line that is incomplete; ends one that lacks its newline only."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        content = file.read()
        start = content.rfind(b"\n") + 1
        if start == len(content):
            return
        try:
            json.loads(content[start:])
        except ValueError:
            file.truncate(start)
        else:
            file.write(b"\n")
