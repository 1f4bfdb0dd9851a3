"""The house: imports point down, and the whole of it stays small.

pytest tests/test_layers.py
"""

import ast
import collections
import re
from pathlib import Path

import pytest

import jaxpar

ROOT = Path(jaxpar.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
MOST_LINES, MOST_LINES_IN_A_ROOM = 29_800, 2_500
# Words of a private dialect that this code once had.
PRIVATE = re.compile(r"\b(wish|granted|heed|told|born|lent)\b", re.IGNORECASE)
LEVELS = (
    {"atomic", "axes", "errors", "hardware", "moved", "tables", "tree"},
    {"cache", "config"},
    {"tokens"},
    {"files"},
    {"partition", "sources"},
    {"guard", "pipeline"},
    {"nn", "data", "optim", "metrics", "checkpoint"},
    {"experts"},
    {"models"},
    {"train"},
    {"experiment"},
    {"run"},
    {"huggingface", "generate"},
    {"verify", "plan"},
    {"look"},
    {"pretrain", "finetune", "evaluate"},
    {"sweep"},
    {"cli"},
    {"__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
IMPORTERS = ("import_module", "__import__")


def name_of(path: Path) -> str:
    """The dotted name of a module's file; a package is named after its folder."""
    parts = ("jaxpar", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> str | None:
    """The room of a dotted name; None for jaxpar itself, which holds nothing."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else None


def base_of(node: ast.ImportFrom, package: str) -> str:
    """The absolute name that a `from` import starts from."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def imported(source: str, package: str) -> set[str]:
    """Dotted names that a module's source imports, anywhere and in any form."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = base_of(node, package)
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            name = node.args[0]
            if called in IMPORTERS and isinstance(name, ast.Constant):
                found.add(str(name.value))
    return {name for name in found if name.split(".")[0] == "jaxpar"}


def complaints(name: str, package: str, source: str) -> list[str]:
    """What is wrong with a module's imports, in words."""
    room = room_of(name)
    found = []
    if room is not None and room not in LEVEL:
        return [f"give room {room} a level in tests/test_layers.py"]
    for target in sorted(imported(source, package)):
        below = room_of(target)
        if below is None or below == room or below.startswith("__version"):
            continue
        if below not in LEVEL:
            found.append(f"{name} imports {target}: give room {below} a level")
        elif LEVEL[below] >= (LEVEL[room] if room else 1):
            found.append(f"{name} imports {target}, which is not below it")
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    name = name_of(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    assert not complaints(name, package, path.read_text())


@pytest.mark.parametrize(
    "source",
    [
        "import jaxpar.train.loop",
        "from jaxpar.train import loop",
        "from jaxpar import train",
        "from .. import train",
        "from ..train.loop import fit",
        "def f():\n    from jaxpar.train.loop import fit",
        "if TYPE_CHECKING:\n    import jaxpar.train",
        "importlib.import_module('jaxpar.train.loop')",
        "__import__('jaxpar.train')",
        "import jaxpar.optim.optimizer",
    ],
)
def test_every_form_of_import_that_points_up_is_seen(source):
    (complaint,) = complaints("jaxpar.nn.mlp", "jaxpar.nn", source)
    assert "not below it" in complaint


def test_a_new_room_is_asked_for_its_level():
    (complaint,) = complaints("jaxpar.attic.box", "jaxpar.attic", "")
    assert "give room attic a level" in complaint
    (complaint,) = complaints("jaxpar.cli", "jaxpar", "import jaxpar.attic")
    assert "give room attic a level" in complaint


def test_the_house_stays_small(capsys):
    rooms = collections.Counter()
    for path in MODULES:
        room = room_of(name_of(path)) or "jaxpar"
        rooms[room] += len(path.read_text().splitlines())
    with capsys.disabled():
        print(
            f"\njaxpar/ has {rooms.total():,} lines of at most {MOST_LINES:,}; ", end=""
        )
        print(", ".join(f"{room} {n:,}" for room, n in rooms.most_common()))
    assert rooms.total() <= MOST_LINES
    assert max(rooms.values()) <= MOST_LINES_IN_A_ROOM


def test_no_two_modules_share_a_stem():
    stems = collections.Counter(path.stem for path in MODULES)
    del stems["__init__"]
    assert [stem for stem, n in stems.items() if n > 1] == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_the_words_are_those_of_the_field(path):
    assert PRIVATE.findall(path.read_text()) == []


BELOW = {
    "checkpoint": ("jaxpar.data", "jaxpar.metrics", "jaxpar.train", "jaxpar.models"),
    "train": ("jaxpar.models.decoder", "jaxpar.models.sizes", "jaxpar.checkpoint"),
}


@pytest.mark.parametrize("room", BELOW)
def test_a_room_knows_nothing_of_what_it_serves(room):
    for path in (ROOT / room).rglob("*.py"):
        for target in imported(path.read_text(), f"jaxpar.{room}"):
            assert not target.startswith(BELOW[room]), f"{path.name} imports {target}"


def test_partition_holds_no_attention():
    for path in (ROOT / "partition").glob("*.py"):
        assert not re.search(
            r"(nn|lax|jnp)\.(softmax|einsum|exp|dot)", path.read_text()
        )


def test_the_readme_maps_every_room():
    text = (ROOT.parent / "README.md").read_text()
    table = text[text.index("## The map") : text.index("## Working on it")]
    named = set(re.findall(r"`([\w/]+)`", table))
    rooms = {path.name for path in ROOT.iterdir() if path.suffix == ".py"}
    rooms = {name.removesuffix(".py") for name in rooms} - {"__init__", "__main__"}
    rooms |= {
        f"{path.name}/" for path in ROOT.iterdir() if (path / "__init__.py").exists()
    }
    assert rooms - named == set()
