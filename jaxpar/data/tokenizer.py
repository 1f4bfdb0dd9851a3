"""Tokenizers from bytes to ids that lose nothing."""

import abc
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from jaxpar.errors import UserError

SPECIAL = ("pad", "bos", "eos")
FILE = "tokenizer.json"
MARK = "jaxpar_tokenizer.json"


class Tokenizer(abc.ABC):
    """Plain ids below `n_plain`; behind them pad, begin and end of a text.

    The special ids stand for no text, so no document can contain them.
    """

    n_plain: int
    fingerprint: str

    @property
    def vocab_size(self) -> int:
        """How many ids there are, the special ones included."""
        return self.n_plain + len(SPECIAL)

    @property
    def pad_id(self) -> int:
        """Fills a row up; never scored."""
        return self.n_plain

    @property
    def bos_id(self) -> int:
        """Stands before every document."""
        return self.n_plain + 1

    @property
    def eos_id(self) -> int:
        """Stands behind every document."""
        return self.n_plain + 2

    def encode(self, text: bytes) -> np.ndarray:
        """Plain ids (int32) of UTF-8 text."""
        return self.encode_many([text])[0]

    @abc.abstractmethod
    def encode_many(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Plain ids of each text, on all cores."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of the plain ids; special ids vanish."""

    @abc.abstractmethod
    def save(self, directory: str | pathlib.Path) -> None:
        """Writes what `load` reads."""


class ByteTokenizer(Tokenizer):
    """A byte is an id."""

    n_plain = 256
    fingerprint = hashlib.sha256(b"jaxpar bytes 1").hexdigest()

    def encode_many(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """The bytes themselves."""
        return [np.frombuffer(text, np.uint8).astype(np.int32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        """UTF-8, with U+FFFD where the bytes are none."""
        plain = bytes(int(i) for i in ids if 0 <= i < self.n_plain)
        return plain.decode("utf-8", "replace")

    def save(self, directory: str | pathlib.Path) -> None:
        """One small file: there is nothing to keep but the kind."""
        _write_mark(directory, "Bytes", self.fingerprint)


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding of the `tokenizers` library."""

    def __init__(self, model):
        self.model = model
        self.n_plain = model.get_vocab_size(with_added_tokens=False)
        learnt = json.loads(model.to_str())["model"]
        text = json.dumps([learnt["vocab"], learnt["merges"]], sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def encode_many(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """The library's own threads share the texts out."""
        found = self.model.encode_batch_fast(
            [_utf8(text) for text in texts], add_special_tokens=False
        )
        return [np.asarray(one.ids, np.int32) for one in found]

    def decode(self, ids: Iterable[int]) -> str:
        """The bytes of the ids as UTF-8."""
        plain = [int(i) for i in ids if 0 <= i < self.n_plain]
        return self.model.decode(plain, skip_special_tokens=False)

    def save(self, directory: str | pathlib.Path) -> None:
        """The exchange format, without the special ids, beside a mark."""
        _write_mark(directory, "BPE", self.fingerprint)
        self.model.save(str(pathlib.Path(directory, FILE)))


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(abc.ABC):
    """How text becomes ids."""

    @abc.abstractmethod
    def build(self, texts: Iterable[bytes]) -> Tokenizer:
        """The tokenizer, learnt from the texts where it learns."""


@dataclasses.dataclass(frozen=True)
class Bytes(TokenizerConfig):
    """A byte is an id: 259 ids, nothing to learn."""

    def build(self, texts: Iterable[bytes]) -> Tokenizer:
        """Reads none of the texts."""
        return ByteTokenizer()


@dataclasses.dataclass(frozen=True)
class BPE(TokenizerConfig):
    """Byte-level byte-pair encoding, learnt from the training documents."""

    vocab_size: int
    """Ids in all: 256 bytes, the merges and 3 special ones."""
    train_bytes: int = 1_000_000_000
    """It learns from the first documents up to so many bytes."""

    def __post_init__(self):
        least = 256 + len(SPECIAL)
        if self.vocab_size < least:
            raise UserError(
                f"BPE({self.vocab_size}) has no room for 256 bytes and "
                f"{len(SPECIAL)} special ids; ask for at least {least}."
            )

    def build(self, texts: Iterable[bytes]) -> Tokenizer:
        """Learns the merges; the same texts in the same order give the same ones."""
        import tokenizers

        model = tokenizers.Tokenizer(tokenizers.models.BPE())
        model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
            add_prefix_space=False
        )
        model.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self.vocab_size - len(SPECIAL),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model.train_from_iterator(_first(texts, self.train_bytes), trainer)
        return BPETokenizer(model)


def load(directory: str | pathlib.Path) -> Tokenizer:
    """The tokenizer that `save` wrote there; UserError if it is not the same."""
    try:
        mark = json.loads(pathlib.Path(directory, MARK).read_text())
        kind, expected = mark["type"], mark["fingerprint"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{directory} holds no tokenizer: {MARK} cannot be read ({error})."
        ) from error
    if kind not in _LOADERS:
        raise UserError(f"{directory}: unknown tokenizer {kind!r}; not {[*_LOADERS]}.")
    tokenizer = _LOADERS[kind](pathlib.Path(directory))
    if tokenizer.fingerprint != expected:
        raise UserError(
            f"{directory}: the tokenizer's hash is {tokenizer.fingerprint[:16]}, but "
            f"{expected[:16]} was saved; copy the directory again from its source."
        )
    return tokenizer


def _load_bytes(directory: pathlib.Path) -> Tokenizer:
    return ByteTokenizer()


def _load_bpe(directory: pathlib.Path) -> Tokenizer:
    import tokenizers

    path = directory / FILE
    try:
        text = path.read_text("utf-8")
        return BPETokenizer(tokenizers.Tokenizer.from_str(text))
    except Exception as error:  # The library raises plain Exception.
        raise UserError(f"{path} is no tokenizer: {error}.") from error


_LOADERS = {"Bytes": _load_bytes, "BPE": _load_bpe}


def _write_mark(directory: str | pathlib.Path, kind: str, fingerprint: str) -> None:
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    mark = {"type": kind, "fingerprint": fingerprint}
    (directory / MARK).write_text(json.dumps(mark) + "\n")


def _utf8(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"Text is not UTF-8 at byte {error.start}; BPE reads UTF-8, "
            "tokenizer=Bytes() any bytes."
        ) from error


def _first(texts: Iterable[bytes], limit: int) -> Iterable[str]:
    for text in texts:
        if limit <= 0:
            return
        limit -= len(text)
        yield _utf8(text)
