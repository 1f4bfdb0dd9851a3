"""What verbs print: one JSON object, or text to read."""

import json
import math
from collections.abc import Sequence
from typing import Any


def print_report(report: Any, as_json: bool) -> None:
    """One JSON object, or a table."""
    from jaxpar.tables import print_report

    if as_json:
        print(json.dumps(report.to_json()))
    else:
        print_report(report)


def print_items(found: dict[str, Any], as_json: bool) -> None:
    """One JSON object on stdout, or a line for each of its items; by process 0."""
    from jaxpar.partition import cluster

    if not cluster.is_first():
        return
    if as_json:
        print(json.dumps(_finite_or_null(found), allow_nan=False))
        return
    for name, value in found.items():
        print(f"{name}: {f'{value:.4f}' if isinstance(value, float) else value}")


def print_answers(prompts: Sequence[str], found: dict[str, Any]) -> None:
    """Each prompt, and below it what continues it: its ids where there is no text."""
    from jaxpar.generate.answer import quoted

    texts, tokens = found["text"], found["tokens"]
    if len(prompts) == 1:
        texts, tokens = [texts], [tokens]
    for prompt, text, ids in zip(prompts, texts, tokens, strict=True):
        print(f"{quoted(prompt)}\n{text or ','.join(map(str, ids))}\n")


def _finite_or_null(found: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: null, as in metrics.jsonl."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in found.items()
    }
