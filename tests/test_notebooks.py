"""A notebook and the script beside it are the same cells."""

from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_and_its_script_agree(script):
    notebook, paired = jupytext.read(script.with_suffix(".ipynb")), jupytext.read(script)
    cells, others = (
        [(cell.cell_type, cell.source) for cell in each.cells]
        for each in (notebook, paired)
    )
    assert cells == others, f"run: jupytext --sync {script}"


def test_every_notebook_has_a_script():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {s.stem for s in SCRIPTS}
