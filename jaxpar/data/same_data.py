"""One set of data for all processes of a run, as for all of its sessions."""

import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from jaxpar.data import tokenizer
from jaxpar.data.prepare import Prepared
from jaxpar.data.source import DocumentSource, Source
from jaxpar.data.tokenizer import BPE, Tokenizer
from jaxpar.errors import UserError
from jaxpar.partition import cluster
from jaxpar.sources import known

T = TypeVar("T")


def prepare_together(prepare: Callable[[], T]) -> T:
    """What `prepare` returns, in each of several processes.

    Process 0 prepares first and sends what it has found out of the sources. The others
    then open what is prepared, where they see it; where not, one process of each host
    prepares, from sources that must be the same.

    Raises:
      UserError: they are not, or as `prepare`.
      OtherProcessFailed: another process failed.
    """
    if cluster.count() == 1:
        return prepare()
    before = known.FOUND.set({})
    try:
        results = []
        with cluster.synchronized():
            if cluster.is_first():
                results.append(prepare())
        known.FOUND.set(cluster.broadcast(known.FOUND.get()))
        with cluster.synchronized():
            if not cluster.is_first():
                results.append(prepare())
        return results[0]
    finally:
        known.FOUND.reset(before)


def learned_before(
    source: Source, session: dict[str, Any], directory: Path
) -> Tokenizer | None:
    """The tokenizer that a run has learned from its text, for its next session.

    The text would give the same one again, unless this jaxpar or its libraries draw or
    learn otherwise. session: the run's last, as its receipt has it; directory: where
    the run keeps its tokenizer. None where nothing is learned or what is kept is not
    the session's.
    """
    if not isinstance(source, DocumentSource) or not isinstance(source.tokenizer, BPE):
        return None
    try:
        kept = tokenizer.load(directory)
    except UserError:  # It is learned, and written, again.
        return None
    was = (session.get("data") or {}).get("tokenizer")
    return kept if kept.fingerprint == was else None


def require_same_data(
    run: Path, session: dict[str, Any], prepared: Prepared, *, remedy: str
) -> None:
    """Refuses data or a tokenizer other than those of a session of a run.

    session: as its receipt has it; one without data is passed over. remedy: ends the
    message.

    Raises:
      UserError: one of them has changed.
    """
    was, now = session.get("data"), prepared.description
    if not isinstance(was, dict):
        return
    for name, is_same in (
        ("content", _is_same_content(run, session, prepared)),
        ("tokenizer", was.get("tokenizer") == now.get("tokenizer")),
    ):
        if not is_same:
            raise UserError(
                f"{run}: the {name} of the data has changed since the last session "
                f"(fingerprint {was.get(name)}, now {now.get(name)})"
                f"{_other_library(session, now)}; {remedy}"
            )


def _is_same_content(run: Path, session: dict[str, Any], prepared: Prepared) -> bool:
    """Whether the documents and their split are the same, as far as can be known.

    Receipts of older runs have a fingerprint of the old definition, with versions of
    libraries in it that they do not record. Where it differs, the counts decide.
    """
    was, now = session["data"], prepared.description
    older = prepared.older_content
    if was.get("content_definition") == now.get("content_definition") or older is None:
        return was.get("content") == now.get("content")
    by_installed = older({})
    if was.get("content") in (by_installed, older(session.get("versions") or {})):
        return True
    has_versions = by_installed != now.get("content")
    if not has_versions or any(was.get(p) != now.get(p) for p in ("train", "heldout")):
        return False
    cluster.print_once(
        f"{run} was begun with other versions of the libraries that read its data, "
        "which are part of its fingerprint; the documents and tokens are as many as "
        "they were, and are taken for the same.",
        file=sys.stderr,
    )
    return True


def _other_library(session: dict[str, Any], now: dict[str, Any]) -> str:
    """What is said of the standard library where it is another Python's."""
    theirs, ours = session.get("python"), platform.python_version()
    if now.get("source") != "stdlib" or theirs in (None, ours):
        return ""
    return (
        f": it was trained on the standard library of Python {theirs}, and that of "
        f"Python {ours} is another text"
    )
