"""The commands to type after a run, as they stand: for its own files and text."""

import contextlib
import dataclasses
import os
import runpy
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jaxpar
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.data.windows import Window
from jaxpar.errors import UserError, one_line
from jaxpar.experiment import CLASSES, Finetune
from jaxpar.partition.devices import without_accelerator
from jaxpar.partition.layout import Layout
from jaxpar.run.directory import classes_of
from jaxpar.run.session import Session, refuse_misfits

LONGEST_BEGINNING, LONGEST_PROMPT = 40, 200
"""Characters that are typed of a document, and of an example's prompt, at most."""
TRIED_WINDOWS = 100
"""Held-out windows among which a prompt is looked for."""
FINETUNE = Path(jaxpar.__file__).parents[1] / "experiments" / "quickstart_finetune.py"
"""Fine-tunes any run; only a source checkout has it, not an installed package."""


def next_commands(session: Session, files: Sequence[Path]) -> tuple[str, ...]:
    """What can be typed after a run, a command in each line; or what else to do.

    files: those that define the experiment and its classes, as --import takes them.
    """
    try:
        return _next_commands(session, files)
    except Exception as error:  # What a finished run says must not make it fail.
        return (f"(what to type next is not known: {one_line(error)})",)


def _next_commands(session: Session, files: Sequence[Path]) -> tuple[str, ...]:
    run, imports = typed(session.run_dir.path), ""
    kinds = classes_of(session.experiment)
    unshipped = {c.__name__ for c in kinds if CLASSES.get(c.__name__) is not c}
    if unshipped and not files:
        names = ", ".join(sorted(unshipped))
        path = str(session.run_dir.path)
        return (f"in Python: jaxpar.open_run({path!r}, classes=({names},))",)
    if unshipped:
        imports = f" --import {' '.join(dict.fromkeys(map(typed, files)))}"
    commands = (
        f"{_program()} evaluate {run}{imports}",
        f"{_program()} generate {run} {_prompt(session)}{imports}",
    )
    if isinstance(session.experiment, Finetune):
        return commands
    return (*commands, _finetune(session, f"--start-from {run}{imports}"))


def _program() -> str:
    """How this program is called here."""
    found = shutil.which("jaxpar")
    return "jaxpar" if found else f"{shlex.quote(sys.executable)} -m jaxpar"


def typed(path: Path) -> str:
    """A path as a shell takes it, from the working directory where it is below that."""
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    text = str(path)
    return shlex.quote(f".{os.sep}{text}" if text.startswith("-") else text)


def _prompt(session: Session) -> str:
    """The option that gives `generate` the beginning of a held-out document.

    As token ids where no text of it can be typed in one line.
    """
    heldout, limit = session.prepared.heldout, session.experiment.model.max_positions
    windows = [heldout[i] for i in range(min(len(heldout), TRIED_WINDOWS))]
    for window in windows:
        if text := _beginning(window, session.prepared.tokenizer, limit):
            equals = "=" if text.startswith("-") else " "
            return f"--prompt{equals}{shlex.quote(text)}"
    ids = windows[0].tokens.tolist() if windows else [0]
    return f"--token-ids {','.join(map(str, ids[: max(1, min(8, limit // 2))]))}"


def _beginning(window: Window, tokenizer: Tokenizer, limit: int) -> str:
    """The first line of words in a window's first document; "" where none fits."""
    ids = window.tokens.tolist()
    if tokenizer.bos_id not in ids:
        return ""
    ids = ids[(start := ids.index(tokenizer.bos_id) + 1) :]
    most = LONGEST_BEGINNING
    if 0 < (n_prompt := int((window.weights[start:] > 0).argmax())):
        ids, most = ids[:n_prompt], LONGEST_PROMPT
    if tokenizer.eos_id in ids:
        ids = ids[: ids.index(tokenizer.eos_id)]
    lines = [line.strip() for line in tokenizer.decode(ids).splitlines()]
    # A line of quotes or dashes alone says little.
    text = next((line for line in lines if any(map(str.isalnum, line))), "")
    if not text.isprintable() or "\ufffd" in text:
        return ""
    if len(text) > most:
        text = text[:most].rpartition(" ")[0].strip() or text[:most]
    while text and len(tokenizer.encode(text.encode())) >= max(1, limit // 2):
        text = text[: len(text) // 2].strip()
    return text


def _finetune(session: Session, start: str) -> str:
    """The command that fine-tunes this run with the shipped experiment, if it can.

    start: the options that name the run. Where that experiment is not there, or does
    not fit the model, what to write instead.
    """
    model, layout = session.experiment.model, session.placed.layout
    ways = [(layout, f" --layout {layout.spelling}")]
    if FINETUNE.is_file():
        shipped: Any = runpy.run_path(str(FINETUNE))["experiment"]
        if without_accelerator():
            ways.insert(0, (Layout.parse(shipped.layout.cpu or "data=1"), ""))
        for way, option in ways:
            with contextlib.suppress(UserError):
                tried = dataclasses.replace(shipped, model=model, layout=way)
                refuse_misfits(tried)
                tried.recipe().abstract(way)
                return f"{_program()} finetune {typed(FINETUNE)} {start}{option}"
    return (
        "to fine-tune: a file with `experiment = jaxpar.Finetune(...)` of rows of at "
        f"most {model.max_positions} tokens, and then `{_program()} finetune FILE "
        f"{start}`"
    )
