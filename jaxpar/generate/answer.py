"""Answering prompts with a run: text or token ids in, text and ids out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpar.errors import UserError
from jaxpar.generate.logits import logits_of
from jaxpar.generate.sampling import Generator, Sampling
from jaxpar.partition.layout import Layout
from jaxpar.run.directory import Step
from jaxpar.run.opening import OpenRun, open_run


def main(
    run: str | Path,
    *,
    prompts: Sequence[str] = (),
    token_ids: Sequence[int] | None = None,
    how: Sampling | None = None,
    step: Step = None,
    layout: Layout | str | None = None,
    devices: int | None = None,
    classes: tuple[type, ...] = (),
    stream: bool = False,
) -> dict[str, Any]:
    """{"step", "tokens", "text"}; lists of them where there are several prompts.

    stream: writes a single answer to the terminal as it comes.
    """
    how = how or Sampling()
    opened = open_run(run, step=step, layout=layout, devices=devices, classes=classes)
    if token_ids is not None:
        answers = generator(opened, how)([list(token_ids)])
        text = _decoded(opened, answers)
    else:
        answers, text = answer(opened, prompts, how, stream=stream)
    if len(answers) == 1:
        return {"step": opened.step, "tokens": answers[0], "text": text[0]}
    return {"step": opened.step, "tokens": answers, "text": text}


def generator(opened: OpenRun, how: Sampling) -> Generator:
    """The compiled sampler of an opened run; reusable for more prompts."""
    return Generator(opened.recipe, opened.placed, opened.params, how=how)


def answer(
    opened: OpenRun, prompts: Sequence[str], how: Sampling, *, stream: bool = False
) -> tuple[list[list[int]], list[str]]:
    """Ids and text that continue each prompt, up to the end of text."""
    tokens = opened.tokenizer
    rows = [[tokens.bos_id, *map(int, tokens.encode(p.encode()))] for p in prompts]
    sample = generator(opened, how)
    if not sample.cached:
        print("The model keeps no cache: the prefix is run again.", file=sys.stderr)
    ways = sample.placed.layout.batch_divisor
    if len(rows) % ways:
        filled = -(-len(rows) // ways) * ways
        print(
            f"{len(rows)} prompts are filled up with copies to {filled}, which layout "
            f"{opened.placed.layout.spelling} divides.",
            file=sys.stderr,
        )
    show = _Streamed(tokens) if stream and len(rows) == 1 else None
    answers = sample(rows, stop_id=tokens.eos_id, on_tokens=show)
    if show:
        show.end()
    return answers, [tokens.decode(ids) for ids in answers]


def logits(
    run: str | Path, tokens, layout: Layout | str | None = None, **opening: Any
) -> np.ndarray:
    """Logits [B, T, V] of ids [B, T] under a run, as NumPy."""
    opened = open_run(run, layout=layout, **opening)
    shape = np.shape(tokens)
    limit = opened.recipe.model.max_positions
    if len(shape) != 2 or shape[1] > limit:
        raise UserError(
            f"Token ids of shape {shape}; rows of at most {limit} tokens are wanted."
        )
    return logits_of(opened.recipe, opened.placed, opened.params, tokens)


class _Streamed:
    """Prints the text of one answer as its tokens come, whole characters only."""

    def __init__(self, tokens):
        self._tokens, self._ids, self._shown = tokens, [], 0

    def __call__(self, ids: np.ndarray) -> None:
        if ids[0] == self._tokens.eos_id:
            return
        self._ids.append(int(ids[0]))
        text = self._tokens.decode(self._ids)
        # A last replacement character may be the beginning of a longer one.
        ready = text[:-1] if text.endswith("�") else text
        sys.stdout.write(ready[self._shown :])
        sys.stdout.flush()
        self._shown = max(self._shown, len(ready))

    def end(self) -> None:
        sys.stdout.write("\n")
        sys.stdout.flush()


def _decoded(opened: OpenRun, answers: list[list[int]]) -> list[str]:
    """Text where the run has a tokenizer; none is needed for ids."""
    if not opened.run_dir.tokenizer_dir.is_dir():
        return [""] * len(answers)
    return [opened.tokenizer.decode(ids) for ids in answers]
