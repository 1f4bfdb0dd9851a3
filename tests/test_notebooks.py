"""Notebooks have outputs: of the cells that stand there, and fit to be read."""

import runpy
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
TOOL = runpy.run_path(str(ROOT / ".ci" / "notebooks.py"))
TABLE = {"text/html": "<table></table>"}

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


@pytest.mark.parametrize(
    "outputs, fault",
    [
        ([new_output("stream", name="stderr", text="Warning")], "stderr"),
        ([new_output("stream", text="see /tmp/abc/run")], "of this machine"),
        ([new_output("execute_result", {"text/plain": "0"})], "bare repr"),
        ([new_output("execute_result", TABLE | {"text/plain": "T(a=1)"})], "bare repr"),
        ([], "shows none"),
        ([new_output("execute_result", TABLE | {"text/plain": "a  b"})], None),
    ],
)
def test_what_no_reader_should_find_is_found(outputs, fault):
    cell = new_code_cell("show(experiment)", outputs=outputs)
    found = TOOL["faults"](new_notebook(cells=[cell]))
    assert (fault in found[0]) if fault else not found
