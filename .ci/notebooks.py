"""Notebooks with outputs: executed, and checked to be of the code that stands there.

    python .ci/notebooks.py write notebooks/01_pretrain.py    # executes, keeps outputs
    python .ci/notebooks.py check                             # executes all afresh

The script is the source; the notebook beside it has its cells, their outputs, and in
its metadata a hash of the cells, so that outputs are never those of other code. `check`
keeps nothing: it fails where a cell does, or shows what a reader should not find.
"""

import ast
import hashlib
import json
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
HASH = "sha256_of_sources"
TIMEOUT_SECONDS = 600
MOST_BYTES = 600_000
HIDDEN = "hide-input"
WIDGET = "application/vnd.jupyter.widget-view+json"
REPR = re.compile(r"<|\w+\(\w+=")
# What belongs to the machine that executed it.
LOCAL = re.compile(r"/tmp/|/home/|/root/|/var/folders/|/Users/|0x[0-9a-f]{8,}")


def hash_of(notebook) -> str:
    """A hash of the cells' kinds and sources."""
    cells = [[cell.cell_type, cell.source] for cell in notebook.cells]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def executed(script: Path):
    """The notebook of a script, with the outputs of a fresh kernel."""
    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"{script.stem[:2]}-{number}"
    NotebookClient(
        notebook,
        timeout=TIMEOUT_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    ).execute()
    return notebook


def tidy(notebook) -> None:
    """Leaves out what is of one execution alone, and widgets that nobody could see."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        for output in cell.outputs:
            output.get("metadata", {}).clear()
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata[HASH] = hash_of(notebook)


def faults(notebook) -> list[str]:
    """What a reader should not find in the outputs, or should and does not."""
    found = []
    for number, cell in enumerate(notebook.cells):
        if not cell.get("outputs") and shows_something(cell):
            found.append(f"cell {number} ends in something to be seen, and shows none")
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                found.append(f"cell {number} writes to stderr: {output.text[:300]!r}")
            data = {k: v for k, v in output.get("data", {}).items() if "image" not in k}
            if output.output_type == "execute_result" and is_bare(output.data):
                found.append(f"cell {number} ends in a bare repr: {data}"[:300])
            text = json.dumps([output.get("text", ""), data])
            if local := LOCAL.search(text):
                near = text[max(local.start() - 60, 0) : local.end() + 60]
                found.append(f"cell {number} shows what is of this machine: {near}")
    return found


def shows_something(cell) -> bool:
    """Whether a code cell that readers see ends in an expression."""
    if cell.cell_type != "code" or HIDDEN in cell.metadata.get("tags", ()):
        return False
    body = ast.parse(cell.source).body
    return bool(body) and isinstance(body[-1], ast.Expr)


def is_bare(data) -> bool:
    """Whether a cell's value is shown as nothing but its repr."""
    is_drawn = any(kind.startswith("image/") for kind in data)
    is_table = "text/html" in data and not REPR.match(data["text/plain"])
    return not (is_drawn or is_table)


def write(script: Path) -> list[str]:
    """Executes a script's cells and keeps the notebook; what is wrong with it."""
    notebook = executed(script)
    tidy(notebook)
    nbformat.write(notebook, script.with_suffix(".ipynb"))
    return [*faults(notebook), *stale(script)]


def stale(script: Path) -> list[str]:
    """Why the outputs that are kept are not of this script's code."""
    kept = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    size = script.with_suffix(".ipynb").stat().st_size
    found = [] if size <= MOST_BYTES else [f"{size:,} bytes; at most {MOST_BYTES:,}"]
    if not kept.metadata.get(HASH) == hash_of(kept) == hash_of(jupytext.read(script)):
        found.append(f"outputs of other code: python .ci/notebooks.py write {script}")
    return found


def main(verb: str, *names: str) -> int:
    """Writes or checks these scripts, or all; returns the exit status."""
    scripts = [Path(name) for name in names] or sorted(FOLDER.glob("*.py"))
    began, failed = time.monotonic(), 0
    for script in scripts:
        start = time.monotonic()
        if verb == "write":
            found = write(script)
        else:
            found = [*stale(script), *faults(executed(script))]
        print(f"{script.name}: {time.monotonic() - start:.0f} s", *found, sep="\n  ")
        failed += bool(found)
    print(f"together: {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
