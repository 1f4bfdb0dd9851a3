"""A source of files that have been read before: opened only to read documents."""

import contextvars
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from jaxpar import cache
from jaxpar.errors import UserError
from jaxpar.files import kept
from jaxpar.sources import patterns, stdlib
from jaxpar.sources.corpus import TRAIN_AND_HELDOUT, Corpus, Document, Example, Lazy
from jaxpar.sources.registry import Spelling, in_one_text, open_source

FORMAT = 1
READERS = ("tensorflow-datasets", "array-record", "pyarrow")
"""Libraries whose versions take part in the names of prepared data."""
Answers = dict[str, Any]
FOUND: contextvars.ContextVar[dict[str, Answers] | None] = contextvars.ContextVar(
    "what is known of each source", default=None
)
"""Where several processes prepare: the answers of process 0, which the others take."""
T = TypeVar("T")


def open_known(
    source: Spelling,
    *,
    text_field: str = "text",
    parts: tuple[str, ...] = TRAIN_AND_HELDOUT,
) -> Corpus:
    """The source, as `open_source` takes it; no file is read that was read before.

    Raises:
      UserError: as `open_source`.
    """
    source = in_one_text(source)
    word, _, name = source.partition(":")
    if source != "stdlib" and not (word == "files" and name):
        return open_source(source, text_field=text_field, parts=parts)
    return KnownSource(name, source=source, text_field=text_field, parts=parts)


class KnownSource(Corpus):
    """A source that answers what is known of it while its files are as they were.

    Documents and examples are read from the source itself, which is then opened.
    """

    def __init__(
        self, name: str, *, source: str, text_field: str, parts: tuple[str, ...]
    ):
        super().__init__(name, source=source, text_field=text_field, parts=parts)
        versions = cache.versions(*READERS)
        spelled = {"source": source, "text_field": text_field, "parts": [*parts]}
        self._what = {"known_source": FORMAT, **spelled, "versions": versions}
        self._state, self._n_kept, found = None, 0, FOUND.get()
        which = cache.key(**self._what)
        self._sent = bool(found) and which in found
        if found and self._sent:
            self._answers: Answers = found[which]
            return
        self._state = kept.state_of(self._paths())
        look = self._state and kept.look(self._what, self._state)
        self._answers = look or {}
        self._n_kept = len(self._answers)
        if not self._answers:
            self._opened  # noqa: B018  What is wrong with it is said now.
        if found is not None:
            found[which] = self._answers

    def documents(self) -> Mapping[str, Sequence[Document]]:
        def sizes(corpus: Corpus) -> dict[str, int]:
            return {part: len(found) for part, found in corpus.by_part.items()}

        def document(part: str, i: int) -> Document:
            return self._opened.by_part[part][i]

        return {
            part: Lazy(range(n), functools.partial(document, part))
            for part, n in self._answer("documents", sizes).items()
        }

    def fingerprint(self) -> str:
        return self._identity["fingerprint"]

    def versioned_fingerprint(self, versions: Mapping[str, str] | None = None) -> str:
        if versions:
            return self._opened.versioned_fingerprint(versions)
        return self._identity["versioned"]

    @property
    def facts(self) -> dict[str, Any]:
        return self._identity["facts"]

    @property
    def has_examples(self) -> bool:
        return self._answer("has_examples", lambda corpus: corpus.has_examples)

    @property
    def has_only_examples(self) -> bool:
        return self._answer("only_examples", lambda corpus: corpus.has_only_examples)

    def examples(self, part: str) -> Sequence[Example]:
        return self._opened.examples(part)

    def n_records(self, part: str) -> int:
        return self._answer(f"records/{part}", lambda corpus: corpus.n_records(part))

    def _answer(self, question: str, ask: Callable[[Corpus], T]) -> T:
        if question not in self._answers:
            self._answers[question] = ask(self._opened)
        return self._answers[question]

    @property
    def _identity(self) -> Answers:
        """What names the content; at which everything known by now is kept."""

        def ask(corpus: Corpus) -> Answers:
            return {
                "fingerprint": corpus.fingerprint(),
                "versioned": corpus.versioned_fingerprint(),
                "facts": corpus.facts,
            }

        identity = self._answer("identity", ask)
        if self._state and len(self._answers) > self._n_kept:
            kept.keep(self._what, self._paths(), self._state, self._answers)
            self._n_kept = len(self._answers)
        return identity

    @functools.cached_property
    def _opened(self) -> Corpus:
        """The source itself.

        Raises:
          UserError: it is not what process 0 has found.
        """
        corpus = open_source(self.source, text_field=self.text_field, parts=self.parts)
        expected = self._answers.get("identity") if self._sent else None
        if expected and (here := corpus.fingerprint()) != expected["fingerprint"]:
            raise UserError(
                f"{self.source} is other data here (fingerprint {here}) than for "
                f"process 0 ({expected['fingerprint']}); copy it again."
            )
        return corpus

    def _paths(self) -> Iterable[Any]:
        """All files that the source may read."""
        found = patterns.found(self.name) if self.name else stdlib.modules()
        return found.values()
