"""Notebooks have outputs: of the cells that stand there, and fit to be read."""

import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
TOOL = runpy.run_path(str(ROOT / ".ci" / "notebooks.py"))
QUIET = ("import ", "def ", "class ")

each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)


def read(script):
    return nbformat.read(script.with_suffix(".ipynb"), as_version=4)


@each_script
def test_outputs_are_of_the_cells_that_stand_there(script):
    assert not TOOL["stale"](script)


@each_script
def test_outputs_are_fit_to_be_read(script):
    assert not TOOL["faults"](read(script))


def test_every_notebook_has_a_script():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {s.stem for s in SCRIPTS}
