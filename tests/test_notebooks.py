"""A notebook and the script beside it are the same cells."""

from pathlib import Path

import jupytext
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_and_its_script_agree(script):
    cells, others = (
        [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]
        for path in (script.with_suffix(".ipynb"), script)
    )
    assert cells == others, f"run: jupytext --sync {script}"


def test_every_notebook_has_a_script():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {s.stem for s in SCRIPTS}
