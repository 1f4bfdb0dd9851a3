"""What an experiment reads: plain text, or prompts with answers."""

import abc
import dataclasses
from typing import Literal

from jaxpar.config import added
from jaxpar.data import prepare
from jaxpar.data.prepare import Prepared
from jaxpar.data.tokenizer import Bytes, Tokenizer, TokenizerConfig
from jaxpar.data.windows import Windows
from jaxpar.errors import UserError
from jaxpar.sources.corpus import WHOLE, Corpus
from jaxpar.sources.table import find_kind, open_source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """Rows of `seq_len` tokens, `batch_size` of them in a step on all devices."""

    seq_len: int
    """Length of a row, in tokens."""
    batch_size: int
    """Rows in a step, on all devices together."""

    def __post_init__(self):
        for name in ("seq_len", "batch_size"):
            if (value := getattr(self, name)) < 1:
                raise UserError(f"{name}={value} must be at least 1.")

    @abc.abstractmethod
    def prepare(
        self, tokenizer: Tokenizer | None = None, *, progress: bool = True
    ) -> Prepared:
        """Tokenises the documents into files, once; later calls open these.

        tokenizer: the one of the run that is fine-tuned; a pre-training learns its own.
        """

    def fetch(self) -> None:  # noqa: B027 (most have nothing to fetch)
        """Downloads what is not here yet; `jaxpar data prepare` alone asks for it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentSource(Source):
    """Plain documents of any corpus: a class of one's own has to give `corpus`."""

    tokenizer: TokenizerConfig = Bytes()
    """How text becomes token ids."""

    @abc.abstractmethod
    def corpus(self) -> Corpus:
        """The documents, opened; see jaxpar.sources.corpus."""

    def prepare(
        self, tokenizer: Tokenizer | None = None, *, progress: bool = True
    ) -> Prepared:
        """With the given tokenizer, else its own, learned from the training part.

        Raises:
          UserError: the source is absent, empty, damaged, not UTF-8, or too small.
        """
        corpus = self.corpus()
        prepare.need_parts(corpus)
        return prepare.text(
            corpus,
            tokenizer or prepare.learned(self.tokenizer, corpus),
            seq_len=self.seq_len,
            batch_size=self.batch_size,
            progress=progress,
        )


@dataclasses.dataclass(frozen=True)
class Text(DocumentSource):
    """Plain documents: stdlib, synthetic, files:GLOB or tfds:NAME."""

    source: str = "stdlib"
    """Documents: stdlib, synthetic, files:GLOB (text, .jsonl, .parquet), tfds:NAME."""
    text_field: str = added("text")
    """Field that holds the text of .jsonl, .parquet and tfds: records; "" reads every
    file as plain text."""

    def corpus(self) -> Corpus:
        return open_source(self.source, text_field=self.text_field)

    def fetch(self) -> None:
        fetch(self.source)


@dataclasses.dataclass(frozen=True)
class Pairs(Source):
    """Prompts with answers: stdlib (functions -> docstrings), or files of records.

    A source that holds none is read as plain text: it continues the pre-training.
    """

    source: str = "stdlib"
    """Examples: stdlib, or files:GLOB of .jsonl or .parquet with prompt and answer;
    any other source is plain text."""
    too_long: Literal["refuse", "cut"] = dataclasses.field(
        default="refuse", kw_only=True
    )
    """What to do with examples longer than a row: refuse, or cut the prompt's middle."""
    text_field: str = added("text")
    """Field that holds the text of records that are no examples; "" reads every file
    as plain text."""

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
          UserError: as for Text; or a record is no example, or one is too long.
        """
        if tokenizer is None:
            raise UserError("Pairs needs the tokenizer of the run it fine-tunes.")
        corpus = open_source(self.source, text_field=self.text_field)
        sizes = {"seq_len": self.seq_len, "batch_size": self.batch_size}
        if corpus.has_examples:
            return prepare.answers(
                corpus, tokenizer, too_long=self.too_long, progress=progress, **sizes
            )
        return prepare.text(corpus, tokenizer, progress=progress, **sizes)


def score(source: str, tokenizer: Tokenizer, seq_len: int) -> Windows:
    """All of a source, to be scored: every byte of it, nothing held back."""
    corpus = open_source(source, parts=WHOLE)
    return prepare.everything(corpus, tokenizer, seq_len=seq_len)


def fetch(source: str) -> None:
    """Downloads what `tfds:NAME` names and prepares its records, if it is not here.

    Nothing else looks at a network; other sources have nothing to fetch.
    """
    kind, name = find_kind(source)
    kind.fetch(name)
