"""Answers about the content of files, kept while the files are as they were.

A digest of 100 GB takes minutes, a look at the files' times none. An answer is kept in
the cache beside a hash of each file's path, device, inode, size and times of change, in
a file of its own: where that is absent or damaged, the content is read again.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from jaxpar import atomic, cache

FORMAT = 1
RESOLUTION_NS = 2_000_000_000
"""Two changes within so long may have one time: FAT has the coarsest, of 2 s."""
T = TypeVar("T")


class State(NamedTuple):
    """How some files are, without their content."""

    digest: str
    changed_ns: int
    """When the newest one was changed, in nanoseconds."""
    seen_ns: int
    """When this was found out, by the same clock."""


def state_of(paths: Iterable[str | pathlib.Path]) -> State | None:
    """How some files are now; None where one of them cannot be looked at."""
    seen, changed, digest, here = time.time_ns(), 0, hashlib.sha256(), os.getcwd()
    try:
        for path in paths:
            place, s = os.path.join(here, path), os.stat(path)
            digest.update(
                f"{place}\0{s.st_dev} {s.st_ino} {s.st_size} {s.st_mtime_ns} "
                f"{s.st_ctime_ns}\n".encode(errors="surrogateescape")
            )
            changed = max(changed, s.st_mtime_ns, s.st_ctime_ns)
    except OSError:  # Whoever reads the file says what is wrong.
        return None
    return State(digest.hexdigest(), changed, seen)


def look(what: dict[str, Any], state: State) -> Any:
    """What is kept of files in a state; None where nothing is.

    what: names the question, and all that the answer depends on beside the files.
    """
    try:
        entry = json.loads(_place(what, state).read_bytes())
        answer, check = entry["answer"], entry["check"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return answer if check == cache.key(answer=answer) else None


def keep(
    what: dict[str, Any],
    paths: Iterable[str | pathlib.Path],
    state: State,
    answer: Any,
) -> None:
    """Keeps an answer that was found out after `state`, if that is still how files are.

    An answer about files that had just been changed is not kept: a change that came
    after it might have the same time.
    """
    if state.changed_ns > state.seen_ns - RESOLUTION_NS:
        return
    now = state_of(paths)
    if now is None or now.digest != state.digest:
        return
    place = _place(what, state)
    entry = {"answer": answer, "check": cache.key(answer=answer)}
    with contextlib.suppress(OSError):  # Then the files are read again another time.
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(place, json.dumps(entry).encode())


def answer(
    what: dict[str, Any], path: str | pathlib.Path, find_out: Callable[[], T]
) -> T:
    """The answer about one file: what is kept of it, else what `find_out` returns.

    It has to be of JSON, and not None.
    """
    state = state_of([path])
    if state is None:
        return find_out()
    found = look(what, state)
    if found is None:
        found = find_out()
        keep(what, [path], state, found)
    return found


def _place(what: dict[str, Any], state: State) -> pathlib.Path:
    name = cache.key(format=FORMAT, what=what, files=state.digest)
    return cache.root() / "kept" / f"{name}.json"
