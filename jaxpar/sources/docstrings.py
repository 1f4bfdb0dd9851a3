"""Examples made of Python source: a function -> the first line of its docstring."""

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator

from jaxpar.errors import UserError
from jaxpar.sources.corpus import Document, Example

SEPARATOR = b"\n# docstring: "
"""Ends a prompt that is a function; the docstring's first line follows."""
NEWLINE = re.compile(rb"\r\n|\r|\n")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def examples(document: Document) -> Iterator[Example]:
    """Each function without its docstring, and the docstring's first line as answer.

    Raises:
      UserError: the document cannot be parsed as Python.
    """
    source = document.text[:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Invalid escapes in others' code.
            tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{document.name} cannot be parsed: {error}.") from error
    line_starts = [0, *(match.end() for match in NEWLINE.finditer(source))]
    for node in _functions(tree):
        lines = (ast.get_docstring(node) or "").splitlines()
        if lines and lines[0].strip():
            prompt = _without_docstring(source, node, line_starts) + SEPARATOR
            yield Example(lines[0].strip().encode(), prompt)


def _functions(node: ast.AST) -> Iterator[Function]:
    # Statements only: `ast.walk` visits every expression, and takes twice as long.
    for block in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, block, ()):
            if isinstance(child, Function):
                yield child
            yield from _functions(child)


def _without_docstring(source: bytes, node: Function, line_starts: list[int]) -> bytes:
    text = node.body[0]
    first = line_starts[node.lineno - 1]
    before = source[first : line_starts[text.lineno - 1] + text.col_offset].rstrip()
    stop = _end(node, line_starts)
    after = source[_end(text, line_starts) : stop].rstrip()
    return textwrap.dedent((before + after).decode("utf-8")).encode()


def _end(node: ast.stmt, line_starts: list[int]) -> int:
    """Where a statement ends in the source, in bytes."""
    line, column = node.end_lineno or node.lineno, node.end_col_offset or 0
    return line_starts[line - 1] + column
