"""Every field of every configuration says in `--help` what it is.

pytest tests/test_help.py
"""

import ast
import dataclasses
import inspect
import re

import pytest

from jaxpar.cli import main, options
from jaxpar.config import Spelled
from jaxpar.experiment import CLASSES

KINDS = [kind for kind in CLASSES.values() if not issubclass(kind, Spelled)]
VERBS = [
    options.Train, options.FinetuneRun, options.Evaluate, options.Generate,
    options.Show, options.Verify,
]  # fmt: skip


def documented(kind):
    """The fields that a class, or one it inherits from, has a line of text below."""
    found = set()
    for each in kind.__mro__:
        if not dataclasses.is_dataclass(each) or each.__module__ == "builtins":
            continue
        body = ast.parse(inspect.getsource(each).strip()).body[0].body
        for field, text in zip(body, body[1:], strict=False):
            below = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and below:
                found.add(field.target.id)
    return found


@pytest.mark.parametrize("kind", [*KINDS, *VERBS], ids=lambda kind: kind.__name__)
def test_every_field_has_a_line_of_its_own(kind):
    names = {field.name for field in dataclasses.fields(kind) if field.init}
    assert names - documented(kind) == set()


@pytest.mark.parametrize("verb", ["pretrain", "show"])
def test_the_help_of_an_experiment_shows_text_and_default_of_each_flag(capsys, verb):
    assert main([verb, "experiments/quickstart.py", "--help"]) == 0
    # Without the frames, one flag's text behind another's.
    text = re.sub(r"[│|+\s]+", " ", capsys.readouterr().out)
    assert len(re.findall(r" --[\w.-]+ ", text)) > 40
    for flag in ("--num-steps", "--layout", "--keep", "--eval-every"):
        assert re.search(rf"{flag} \S+ [A-Z].{{5,160}}?\(default: ", text), flag
