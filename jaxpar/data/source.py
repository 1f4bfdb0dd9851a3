"""Text and Pairs: the configurations of an experiment's data."""

import abc
import dataclasses
from typing import Literal

from jaxpar.config import added, require_positive
from jaxpar.data import prepare
from jaxpar.data.prepare import Prepared
from jaxpar.data.tokenizer import Bytes, Tokenizer, TokenizerConfig
from jaxpar.data.windows import Windows
from jaxpar.errors import UserError
from jaxpar.sources import own_source
from jaxpar.sources.corpus import WHOLE, Corpus
from jaxpar.sources.known import open_known
from jaxpar.sources.registry import Spelling, find_kind
from jaxpar.sources.separate_heldout import WithHeldout
from jaxpar.tables import say_once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(abc.ABC):
    """What a model is trained on, and in which rows."""

    seq_len: int
    """Length of a row, in tokens."""
    batch_size: int
    """Rows of a step, on all devices and in all microbatches together."""

    def __post_init__(self):
        require_positive(self, "seq_len", "batch_size")

    @abc.abstractmethod
    def prepare(
        self, tokenizer: Tokenizer | None = None, *, progress: bool = True
    ) -> Prepared:
        """Tokenises the documents into files in the cache; later calls open these.

        tokenizer: that of the run that is fine-tuned; a pre-training learns its own.
        """

    def fetch(self) -> None:  # noqa: B027 (most have nothing to fetch)
        """Downloads what is missing; only `jaxpar data prepare` calls it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DocumentSource(Source):
    """Plain documents of any corpus: a subclass has to define `corpus`."""

    tokenizer: TokenizerConfig = Bytes()
    """How text becomes token ids."""

    @abc.abstractmethod
    def corpus(self) -> Corpus:
        """The documents, opened; see jaxpar.sources.corpus."""

    def prepare(
        self, tokenizer: Tokenizer | None = None, *, progress: bool = True
    ) -> Prepared:
        """Windows of documents, one after another.

        tokenizer: None for one that is learned from the training part.

        Raises:
          UserError: the source is absent, empty, damaged, not UTF-8, or too small.
        """
        with own_source.named(self):
            corpus = self.corpus()
        prepare.need_documents(corpus)
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

    source: Spelling = "stdlib"
    """Documents: stdlib, synthetic, tfds:NAME, or files:GLOB of text, JSON, .parquet,
    .csv or .tsv, compressed or not; also a folder, a list, or a saved dataset."""
    text_field: str = added("text")
    """Field that holds the text of records, where they have fields; "" reads files as
    plain text, whatever they hold."""
    heldout: Spelling = added("")
    """Source that is held out, all of it; all of `source` is trained on then."""

    def corpus(self) -> Corpus:
        return _opened(self)

    def fetch(self) -> None:
        _fetch_all(self)


@dataclasses.dataclass(frozen=True)
class Pairs(Source):
    """Prompts with answers, of which only answers are scored.

    A source without any is read as plain text, as by Text: training continues on it.
    """

    source: Spelling = "stdlib"
    """Examples: stdlib (functions with docstrings as answers), or files:GLOB of records
    with the fields prompt and answer; any other source is plain text."""
    too_long: Literal["refuse", "cut"] = dataclasses.field(
        default="refuse", kw_only=True
    )
    """What to do with an example longer than a row: refuse, or cut its prompt's middle;
    an answer that does not fit is left out then."""
    text_field: str = added("text")
    """Field that holds the text of records that are not examples; "" reads files as
    plain text, whatever they hold."""
    heldout: Spelling = added("")
    """Source that is held out, all of it; all of `source` is trained on then."""

    def __post_init__(self):
        super().__post_init__()
        if self.too_long not in ("refuse", "cut"):
            raise UserError(f'too_long={self.too_long!r} must be "refuse" or "cut".')

    def fetch(self) -> None:
        _fetch_all(self)

    def prepare(
        self, tokenizer: Tokenizer | None = None, *, progress: bool = True
    ) -> Prepared:
        """Rows of one example each, or windows of plain text.

        Raises:
          UserError: as for Text; or there is no tokenizer, a record is not an example,
            or one is too long.
        """
        if tokenizer is None:
            raise UserError("Pairs needs the tokenizer of the run that is fine-tuned.")
        corpus = _opened(self)
        sizes = {"seq_len": self.seq_len, "batch_size": self.batch_size}
        if corpus.has_examples:
            return prepare.answers(
                corpus, tokenizer, too_long=self.too_long, progress=progress, **sizes
            )
        say_once(
            f"{corpus.source} has no records of prompt and answer: it is read as plain "
            "text, and all of it is scored."
        )
        return prepare.text(corpus, tokenizer, progress=progress, **sizes)


def score(
    source: Spelling, tokenizer: Tokenizer, seq_len: int, *, text_field: str = "text"
) -> Windows:
    """Windows with all of a source, to be scored; nothing is held out."""
    corpus = open_known(source, text_field=text_field, parts=WHOLE)
    return prepare.everything(corpus, tokenizer, seq_len=seq_len)


def fetch(source: Spelling, *, text_field: str = "text") -> None:
    """Downloads and prepares the dataset of `tfds:NAME`, if it is not here yet.

    Nothing else uses the network; other sources have nothing to fetch.
    """
    kind, name = find_kind(source, text_field=text_field)
    kind.fetch(name)


def _opened(data: Text | Pairs) -> Corpus:
    """The source of some data, together with the one that is held out, if one is."""
    if not data.heldout:
        return open_known(data.source, text_field=data.text_field)
    both = (data.source, data.heldout)
    return WithHeldout(
        *(open_known(s, text_field=data.text_field, parts=WHOLE) for s in both)
    )


def _fetch_all(data: Text | Pairs) -> None:
    for source in filter(None, (data.source, data.heldout)):
        fetch(source, text_field=data.text_field)
