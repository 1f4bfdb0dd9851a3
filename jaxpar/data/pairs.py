"""Prompts with answers: from Python's docstrings, or from JSON lines."""

import ast
import json
import re
import textwrap
import warnings
from collections.abc import Iterator

from jaxpar.config import UserError
from jaxpar.data.corpus import Corpus, Document
from jaxpar.data.layout import Item

FORMAT = 1
SEPARATOR = b"\n# docstring: "
"""Ends a prompt made of a function: what follows is the docstring's first line."""
NEWLINE = re.compile(rb"\r\n|\r|\n")


def holds_pairs(source: str) -> bool:
    """True for a source of JSON lines."""
    return source.startswith("files:") and source.endswith(".jsonl")


def read(corpus: Corpus, part: str) -> list[Item]:
    """Every pair in one part of the corpus, in its order."""
    of = from_json_lines if holds_pairs(corpus.source) else from_functions
    documents = corpus.parts[part]
    return [item for document in documents for item in of(document)]


def from_json_lines(document: Document) -> Iterator[Item]:
    """One pair of each line that is not blank.

    Raises:
      UserError: a line is no object with the texts `prompt` and `answer`.
    """
    for number, line in enumerate(document.text.split(b"\n"), document.line):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise _bad(document, number, f"is no JSON ({error})") from error
        if not isinstance(found, dict):
            raise _bad(document, number, f"is no object, but {type(found).__name__}")
        for name in ("prompt", "answer"):
            if not isinstance(found.get(name), str):
                raise _bad(document, number, f"has no text {name!r}, only {[*found]}")
        yield Item(
            answer=found["answer"].encode("utf-8", "replace"),
            prompt=found["prompt"].encode("utf-8", "replace"),
        )


def from_functions(document: Document) -> Iterator[Item]:
    """A function without its docstring -> the docstring's first line."""
    source = document.text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of invalid escapes in others' code.
            tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{document.name} is no Python: {error}.") from error
    lengths = [match.end() for match in NEWLINE.finditer(source)]
    starts = [0, *lengths]
    for node in _functions(tree):
        lines = (ast.get_docstring(node) or "").splitlines()
        if lines and lines[0].strip():
            prompt = _without_docstring(source, node, starts) + SEPARATOR
            yield Item(lines[0].strip().encode(), prompt)


def _functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    # Statements alone: `ast.walk` looks into every expression, and takes twice as long.
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, block, ()):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child
            yield from _functions(child)


def _without_docstring(source: bytes, node, starts: list[int]) -> bytes:
    text = node.body[0]
    first = starts[node.lineno - 1]
    before = source[first : starts[text.lineno - 1] + text.col_offset].rstrip()
    stop = starts[node.end_lineno - 1] + node.end_col_offset
    after = source[starts[text.end_lineno - 1] + text.end_col_offset : stop].rstrip()
    return textwrap.dedent((before + after).decode("utf-8")).encode()


def _bad(document: Document, number: int, fault: str) -> UserError:
    return UserError(
        f"{document.name}, line {number}: {fault}; each line must be an object such "
        'as {"prompt": "...", "answer": "..."}.'
    )
