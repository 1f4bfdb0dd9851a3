"""What a run reads: plain text, or prompts with answers."""

import abc
import dataclasses
from typing import Literal

from jaxpar.config import UserError
from jaxpar.data import corpus, datasets, pairs, prepare
from jaxpar.data.prepare import Prepared
from jaxpar.data.tokenizer import Bytes, Tokenizer, TokenizerConfig
from jaxpar.data.windows import Windows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Rows of `seq_len` tokens, `batch_size` of them in a step on all devices."""

    seq_len: int
    batch_size: int

    def __post_init__(self):
        for name in ("seq_len", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name}={value} must be at least 1.")

    @abc.abstractmethod
    def prepare(
        self, tokenizer: Tokenizer | None = None, *, progress: bool = True
    ) -> Prepared:
        """Lays the documents out, once; later calls open what was made."""

    def fetch(self) -> None:  # noqa: B027 (most have nothing to fetch)
        """Downloads what is not here yet; `jaxpar data prepare` alone asks for it."""


@dataclasses.dataclass(frozen=True)
class Text(Source):
    """Plain documents: stdlib, synthetic, files:GLOB or tfds:NAME."""

    source: str = "stdlib"
    tokenizer: TokenizerConfig = dataclasses.field(default=Bytes(), kw_only=True)

    def fetch(self) -> None:
        fetch(self.source)

    def prepare(
        self, tokenizer: Tokenizer | None = None, *, progress: bool = True
    ) -> Prepared:
        """With the given tokenizer, else its own, learnt from the training part.

        Raises:
          UserError: the source is absent, empty, damaged, not UTF-8, or too small.
        """
        divided = corpus.divided(self.source)
        prepare.need_parts(divided)
        return prepare.text(
            divided,
            tokenizer or prepare.learned(self.tokenizer, divided),
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            progress=progress,
        )


@dataclasses.dataclass(frozen=True)
class Pairs(Source):
    """Prompts with answers: stdlib (functions -> docstrings) or files:X.jsonl.

    Any other source is read as plain text: it continues the pre-training.
    """

    source: str = "stdlib"
    too_long: Literal["refuse", "cut"] = dataclasses.field(
        default="refuse", kw_only=True
    )

    def __post_init__(self):
        super().__post_init__()
        if self.too_long not in ("refuse", "cut"):
            raise UserError(f'too_long={self.too_long!r} must be "refuse" or "cut".')

    def fetch(self) -> None:
        fetch(self.source)

    def prepare(
        self, tokenizer: Tokenizer | None = None, *, progress: bool = True
    ) -> Prepared:
        """With the tokenizer of the run that is fine-tuned.

        Raises:
          UserError: as for Text; a line of JSON is no pair, or a pair is too long.
        """
        if tokenizer is None:
            raise UserError("Pairs needs the tokenizer of the run it fine-tunes.")
        divided = corpus.divided(self.source)
        sizes = {"seq_len": self.seq_len, "batch_size": self.batch_size}
        if self.source == "stdlib" or pairs.holds_pairs(self.source):
            return prepare.answers(
                divided, tokenizer, too_long=self.too_long, progress=progress, **sizes
            )
        return prepare.text(divided, tokenizer, progress=progress, **sizes)


def score(source: str, tokenizer: Tokenizer, seq_len: int) -> Windows:
    """All of a source, to be scored: every byte of it, nothing held back."""
    return prepare.everything(corpus.everything(source), tokenizer, seq_len=seq_len)


def fetch(source: str) -> None:
    """Downloads what `tfds:NAME` names and prepares its records, if it is not here.

    Nothing else looks at a network; other sources have nothing to fetch.
    """
    kind, _, name = source.partition(":")
    if kind == "tfds":
        datasets.fetch(name)
