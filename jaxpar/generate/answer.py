"""Answers prompts with a run: text or token ids in, text and ids out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jaxpar.checkpoint.verified import Check
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.errors import UserError
from jaxpar.generate.logits import TokenRows, logits_of
from jaxpar.generate.sampling import Generator, Sampling
from jaxpar.partition import cluster
from jaxpar.partition.layout import Layout
from jaxpar.run.directory import Step
from jaxpar.run.opening import OpenRun, in_types_of_run, open_run


@in_types_of_run
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
    check: Check | None = None,
    stream: bool = False,
) -> dict[str, Any]:
    """Continues prompts, or one prompt of token ids, with a run's model.

    Returns {"step", "tokens", "text"}, where tokens and text are lists of answers if
    there are several prompts. stream: write a single prompt to the terminal, and its
    answer while it is generated. The other arguments are those of `open_run`.
    """
    how = how or Sampling()
    opened = open_run(
        run, step=step, layout=layout, devices=devices, classes=classes, check=check
    )
    if token_ids is not None:
        answers = generator(opened, how)([list(token_ids)])
        text = _decoded(opened, answers)
    else:
        answers, text = answer(opened, prompts, how, stream=stream)
    if len(answers) == 1:
        return {"step": opened.step, "tokens": answers[0], "text": text[0]}
    return {"step": opened.step, "tokens": answers, "text": text}


def generator(opened: OpenRun, how: Sampling) -> Generator:
    """The compiled sampler of an opened run; it can be called many times."""
    return Generator(opened.recipe, opened.placed, opened.params, how=how)


def answer(
    opened: OpenRun, prompts: Sequence[str], how: Sampling, *, stream: bool = False
) -> tuple[list[list[int]], list[str]]:
    """The token ids that continue each prompt, up to the end of text, and their text.

    stream: if there is only one prompt, write it to the terminal, and its answer while
    that is generated.
    """
    tokenizer = opened.tokenizer
    rows = [
        [tokenizer.bos_id, *map(int, tokenizer.encode(prompt.encode()))]
        for prompt in prompts
    ]
    sample = generator(opened, how)
    if not sample.has_cache:
        cluster.print_once(
            "The model has no key/value cache: each token recomputes the whole prefix.",
            file=sys.stderr,
        )
    divisor = sample.placed.layout.batch_divisor
    if len(rows) % divisor:
        padded = -(-len(rows) // divisor) * divisor
        cluster.print_once(
            f"{len(rows)} prompts are padded with copies to {padded}, which layout "
            f"{opened.placed.layout.spelling} divides.",
            file=sys.stderr,
        )
    printer = _Printer(tokenizer) if stream and len(rows) == 1 else None
    if printer:
        print(quoted(prompts[0]), flush=True)
    answers = sample(rows, stop_id=tokenizer.eos_id, on_tokens=printer)
    if printer:
        printer.end()
    return answers, [tokenizer.decode(ids) for ids in answers]


@in_types_of_run
def logits(
    run: str | Path,
    tokens: TokenRows,
    layout: Layout | str | None = None,
    **opening: Any,
) -> Float[np.ndarray, "B T V"]:
    """Logits of a run's model for rows of token ids [B, T].

    opening: further arguments of `open_run`.

    Raises:
      UserError: the tokens are no such rows, too long for the model, or not in its
        vocabulary.
    """
    opened = open_run(run, layout=layout, **opening)
    limit = opened.recipe.model.max_positions
    try:
        shape = np.asarray(tokens).shape
    except ValueError as error:
        raise UserError(
            f"Token ids of rows of different lengths; they must be equally long, and "
            f"at most {limit} tokens."
        ) from error
    if len(shape) != 2 or shape[1] > limit:
        raise UserError(
            f"Token ids of shape {shape}; they must be rows of at most {limit} tokens."
        )
    return logits_of(opened.recipe, opened.placed, opened.params, tokens)


def quoted(prompt: str) -> str:
    """A prompt as it stands above its answer: each of its lines behind a `>`."""
    return "\n".join(f"> {line}" for line in prompt.splitlines())


class _Printer:
    """Writes one answer to the terminal, token by token, in whole characters."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._n_written = 0

    def __call__(self, ids: Int[np.ndarray, "1"]) -> None:
        if ids[0] == self._tokenizer.eos_id:
            return
        self._ids.append(int(ids[0]))
        text = self._tokenizer.decode(self._ids)
        # A final replacement character may be the first bytes of a longer character.
        complete = text[:-1] if text.endswith("�") else text
        sys.stdout.write(complete[self._n_written :])
        sys.stdout.flush()
        self._n_written = max(self._n_written, len(complete))

    def end(self) -> None:
        """Ends the line."""
        sys.stdout.write("\n")
        sys.stdout.flush()


def _decoded(opened: OpenRun, answers: list[list[int]]) -> list[str]:
    """The answers as text; empty where the run has no tokenizer."""
    if not opened.run_dir.tokenizer_dir.is_dir():
        return [""] * len(answers)
    return [opened.tokenizer.decode(ids) for ids in answers]
