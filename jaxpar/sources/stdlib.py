"""The running interpreter's standard library: the corpus that needs no download."""

import os
import pathlib
import sysconfig
from collections.abc import Sequence

from jaxpar.sources import docstrings
from jaxpar.sources.corpus import Example
from jaxpar.sources.text_files import TextFiles

# Near-duplicates of one another, tests, third-party code, this machine's paths.
LEFT_OUT = {
    "encodings", "test", "tests", "idle_test", "lib2to3",
    "site-packages", "dist-packages", "__pycache__",
}  # fmt: skip
LEFT_OUT_PREFIXES = ("_sysconfigdata", "config-")


class StandardLibrary(TextFiles):
    """The modules without tests; examples are functions with their docstrings."""

    def find(self) -> dict[str, pathlib.Path]:
        """The modules by relative path."""
        return modules()

    @property
    def has_examples(self) -> bool:
        return True

    def examples(self, part: str) -> Sequence[Example]:
        """Each function -> the first line of its docstring."""
        documents = self.by_part[part]
        return [example for each in documents for example in docstrings.examples(each)]


def modules() -> dict[str, pathlib.Path]:
    """The files of the standard library by relative path, without tests."""
    top = pathlib.Path(sysconfig.get_paths()["stdlib"])
    paths = {}
    for folder, folders, files in os.walk(top):
        folders[:] = [f for f in folders if _is_included(f)]
        for file in files:
            if file.endswith(".py") and _is_included(file):
                path = pathlib.Path(folder, file)
                paths[path.relative_to(top).as_posix()] = path
    return paths


def _is_included(name: str) -> bool:
    return name not in LEFT_OUT and not name.startswith(LEFT_OUT_PREFIXES)
