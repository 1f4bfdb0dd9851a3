"""A source all of which is trained on, with another one that is held out."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxpar import cache
from jaxpar.errors import UserError
from jaxpar.sources.corpus import EVERY, Corpus, Document, Example


class WithHeldout(Corpus):
    """Two opened sources, each with its documents in one part, EVERY."""

    def __init__(self, train: Corpus, heldout: Corpus):
        source = f"{train.source} with heldout={heldout.source}"
        super().__init__(train.name, source=source, text_field=train.text_field)
        self._of = {"train": train, "heldout": heldout}
        if train.has_examples != heldout.has_examples:
            raise UserError(
                f"{source}: one of them holds prompts with answers, the other only "
                "text; give two of a kind."
            )

    def documents(self) -> Mapping[str, Sequence[Document]]:
        return {part: each.by_part.get(EVERY, ()) for part, each in self._of.items()}

    def fingerprint(self) -> str:
        return cache.key(**{part: c.fingerprint() for part, c in self._of.items()})

    def versioned_fingerprint(self, versions: Mapping[str, str] | None = None) -> str:
        return cache.key(
            **{part: c.versioned_fingerprint(versions) for part, c in self._of.items()}
        )

    @property
    def has_examples(self) -> bool:
        return self._of["train"].has_examples

    @property
    def has_only_examples(self) -> bool:
        return self._of["train"].has_only_examples

    def examples(self, part: str) -> Sequence[Example]:
        return self._of[part].examples(EVERY)

    def n_records(self, part: str) -> int:
        return self._of[part].n_records(EVERY)

    @property
    def facts(self) -> dict[str, Any]:
        facts = self._of["train"].facts
        return {**facts, "held_out": f"all of {self._of['heldout'].source}"}
