"""Finds the files that `files:` patterns name: globs, folders, lists, braces."""

import contextvars
import functools
import glob
import itertools
import os
import pathlib
import re
from collections.abc import Mapping

from jaxpar.errors import UserError
from jaxpar.files import compressed
from jaxpar.tables import say_once

FILES = "files:"
BRACES = re.compile(r"\{([^{}]*,[^{}]*)\}")
EXPERIMENT_FOLDER: contextvars.ContextVar[pathlib.Path | None] = contextvars.ContextVar(
    "folder of the experiment's file", default=None
)
"""Where relative paths are looked up that find nothing in the working directory."""
Hits = tuple[pathlib.Path, list[str]]
"""A folder, and the paths from there that a pattern finds."""


def matching(spelling: str) -> Mapping[str, pathlib.Path]:
    """The files that globs find, by their paths from the first wildcard on.

    A folder means all files below it. A comma separates patterns, and braces hold what
    may stand at a place; names begin where the patterns' folders part. A file that
    links lead to under several names has one: that without a link, else the first in
    order. Where a file is compressed, what it unpacks to is in its place.

    Raises:
      UserError: there is no pattern, or one finds none, or other ones beside the
        experiment's file than in the working directory; it is a URL, or a path is not
        UTF-8.
    """
    return compressed.unpacked(found(spelling))


def found(spelling: str) -> dict[str, str]:
    """What `matching` finds, with compressed files as they are; none is opened.

    Raises:
      UserError: as `matching`.
    """
    if "://" in spelling:
        raise UserError(
            f"files:{spelling} is not a local path; copy the files here, "
            "or mount them, and name them by a path."
        )
    # A comma or a brace may be part of a name, too.
    hits = {spelling: _hits(spelling)}
    if not hits[spelling]:
        hits = {pattern: _hits(pattern) for pattern in spelled_out(spelling)}
    if not hits:
        raise UserError(f"files:{spelling} names no file; write one, or a pattern.")
    files = [_files_of(pattern, some) for pattern, some in hits.items()]
    common = os.path.commonpath([os.path.abspath(top) for top, _ in files])
    by_name = {}
    for top, paths in files:
        below = os.path.relpath(os.path.abspath(top), common)
        before = "" if below == os.curdir else f"{below}/"
        by_name |= {before + name: path for name, path in paths.items()}
    return _each_once(by_name, os.path.realpath(common))


def spelled_out(text: str) -> list[str]:
    """The patterns of a list, without braces.

    >>> spelled_out("{a,b}/*.txt, c{,2}.txt")
    ['a/*.txt', 'c.txt', 'c2.txt', 'b/*.txt']
    """
    if match := BRACES.search(text):
        before, after = text[: match.start()], text[match.end() :]
        each = (spelled_out(before + part + after) for part in match[1].split(","))
        parts = [*itertools.chain.from_iterable(each)]
    else:
        parts = [part.strip().removeprefix(FILES) for part in text.split(",")]
    return [*dict.fromkeys(filter(None, parts))]


def located(path: str) -> pathlib.Path | None:
    """A path in the working directory, else beside the experiment's file.

    None where neither has it.

    Raises:
      UserError: both have it, and they are not the same.
    """
    hits = _hits(path)
    return hits[0] / pathlib.Path(path).expanduser() if hits else None


def _hits(pattern: str) -> Hits | None:
    """The folder from which a pattern finds anything, with that; see `located`."""
    pattern, roots = os.path.expanduser(pattern), [pathlib.Path()]
    beside = EXPERIMENT_FOLDER.get()
    if beside and not os.path.isabs(pattern) and beside.resolve() != pathlib.Path.cwd():
        roots.append(beside)
    found = [(root, hits) for root in roots if (hits := _globbed(pattern, root))]
    if len(found) > 1:
        here, there = ({os.path.realpath(r / hit) for hit in hits} for r, hits in found)
        sides = "from the working directory", "beside the experiment's file"
        odd = zip((here - there, there - here), sides, strict=True)
        if text := " and ".join(f"{min(some)} only {at}" for some, at in odd if some):
            raise UserError(f"{pattern} finds {text}; write the whole path.")
    return found[0] if found else None


def _globbed(pattern: str, root: pathlib.Path) -> list[str]:
    found = glob.glob(pattern, root_dir=root, recursive=True)
    return found or ([pattern] if os.path.exists(root / pattern) else [])


def _files_of(pattern: str, hits: Hits | None) -> tuple[pathlib.Path, dict[str, str]]:
    """The folders before a pattern's wildcards, and below them the files it finds."""
    root, hit = hits or (pathlib.Path(), [])
    wanted = os.path.expanduser(pattern)
    if os.path.isdir(root / wanted) and not glob.has_magic(wanted):
        wanted = os.path.join(wanted, "**", "*")
        hit = _globbed(wanted, root)
    # Texts, since a million objects of pathlib take half a minute.
    start = "" if root == pathlib.Path() else str(root)
    paths = {path: os.path.join(start, path) for path in hit}
    paths = {path: there for path, there in paths.items() if os.path.isfile(there)}
    if not paths:
        beside = EXPERIMENT_FOLDER.get()
        raise UserError(
            f"files:{pattern} matches no file (from {pathlib.Path.cwd()}"
            f"{f', or from {beside}' if beside else ''}); quote the pattern, and use "
            "** to look into folders."
        )
    for path in paths:
        _refuse_odd_name(path)
    top = _before_wildcards(wanted)
    return root / top, {_below(path, top): there for path, there in paths.items()}


def _below(path: str, top: pathlib.Path) -> str:
    """The path from a folder on, with single slashes and no "." between them."""
    start = f"{top}/"
    rest = path.removeprefix(start)
    if (rest == path and top.parts) or "//" in path or "./" in path:
        return pathlib.Path(path).relative_to(top).as_posix()
    return rest


def _each_once(paths: dict[str, str], real_top: str) -> dict[str, str]:
    """The paths without those that lead to a file that is there already."""
    names: dict[str, str] = {}
    real_folder = functools.cache(os.path.realpath)
    for name, path in sorted(paths.items()):
        folder, last = os.path.split(path)
        is_link = os.path.islink(path)
        real = os.path.realpath(path) if is_link else f"{real_folder(folder)}/{last}"
        if real not in names or os.path.join(real_top, name) == real:
            names[real] = name
    if len(names) == len(paths):
        return paths
    kept = set(names.values())
    example = next(path for name, path in paths.items() if name not in kept)
    say_once(
        f"{len(paths) - len(names)} of {len(paths)} paths are links to files that are "
        f"found under another name, too, such as {example}; each file is read once."
    )
    return {name: path for name, path in paths.items() if name in kept}


def _refuse_odd_name(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"The file name {os.fsencode(path)!r} is not UTF-8, in which names are "
            "hashed and shown; rename the file, for example with "
            "convmv -f LATIN1 -t UTF-8."
        ) from error


def _before_wildcards(pattern: str) -> pathlib.Path:
    """The folders of a glob up to its first part with a wildcard."""
    fixed = []
    for part in pathlib.Path(pattern).parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return pathlib.Path(*fixed)
