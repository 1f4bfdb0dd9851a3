"""Tokenizers: lossless conversion of UTF-8 text to token ids and back."""

import abc
import dataclasses
import functools
import hashlib
import json
import pathlib
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxpar import atomic
from jaxpar.config import require_positive
from jaxpar.errors import UserError
from jaxpar.tables import for_messages
from jaxpar.tokens.learning_text import first_pieces, utf8
from jaxpar.tokens.pieces import LongText
from jaxpar.tokens.words import WordEncoder, is_plain

if TYPE_CHECKING:  # The library is optional: Bytes and `--help` do without it.
    import tokenizers

FILE = "tokenizer.json"
"""The tokenizer, in the format of the `tokenizers` library."""
MARK = "jaxpar_tokenizer.json"
"""Type and fingerprint of the tokenizer in a directory, and the hash of its FILE."""

BY_WORDS_BYTES = 1 << 16
"""From so much text on, looking words up is faster than encoding all of them."""


class SpecialIds(NamedTuple):
    """The ids of padding, and of what begins and ends a text."""

    pad: int
    bos: int
    eos: int


N_SPECIAL = len(SpecialIds._fields)


class Tokenizer(abc.ABC):
    """Plain ids below `n_plain`, then those of padding, begin and end of a text.

    The special ids stand for no text, so no document can contain them.
    """

    n_plain: int
    """Ids that stand for text."""
    fingerprint: str
    """A hash of the vocabulary, in hexadecimal."""

    @functools.cached_property
    def special(self) -> SpecialIds:
        """The first ids after n_plain, unless a tokenizer has its own."""
        return SpecialIds(*range(self.n_plain, self.n_plain + N_SPECIAL))

    @property
    def vocab_size(self) -> int:
        """All ids, including the special ones."""
        return max(self.n_plain, 1 + max(self.special))

    @property
    def pad_id(self) -> int:
        """Pads a row; never scored."""
        return self.special.pad

    @property
    def bos_id(self) -> int:
        """Begins every document."""
        return self.special.bos

    @property
    def eos_id(self) -> int:
        """Ends every document."""
        return self.special.eos

    def encode(self, text: bytes) -> np.ndarray:
        """Plain ids (int32) of UTF-8 text."""
        return self.encode_many([text])[0]

    @abc.abstractmethod
    def encode_many(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Plain ids of each text, on all cores."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of the plain ids; special ids are skipped."""

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
        """The bytes as UTF-8, with U+FFFD where they are not valid."""
        plain = bytes(int(i) for i in ids if 0 <= i < self.n_plain)
        return plain.decode("utf-8", "replace")

    def save(self, directory: str | pathlib.Path) -> None:
        """One small file, which names the type."""
        write_mark(directory, "Bytes", self.fingerprint)


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding by the `tokenizers` library."""

    def __init__(self, model: "tokenizers.Tokenizer"):
        self.model, self._lock = model, threading.Lock()
        self.n_plain = model.get_vocab_size(with_added_tokens=False)
        learned = json.loads(model.to_str())["model"]
        text = json.dumps([learned["vocab"], learned["merges"]], sort_keys=True)
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def encode_many(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each text; of much text, each different word is encoded once."""
        if self._words is None or sum(map(len, texts)) < BY_WORDS_BYTES:
            return encoded(self.model, texts)
        with self._lock:
            return [self._words.encode(utf8(text)) for text in texts]

    @functools.cached_property
    def _words(self) -> WordEncoder | None:
        return WordEncoder(self.model) if is_plain(self.model) else None

    def decode(self, ids: Iterable[int]) -> str:
        """The bytes of the ids as UTF-8."""
        plain = [int(i) for i in ids if 0 <= i < self.n_plain]
        return self.model.decode(plain, skip_special_tokens=False)

    def save(self, directory: str | pathlib.Path) -> None:
        """FILE, which does not contain the special ids, and MARK with its hash."""
        content = self.model.to_str(pretty=True).encode()
        pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(pathlib.Path(directory, FILE), content)
        digest = hashlib.sha256(content).hexdigest()
        write_mark(directory, "BPE", self.fingerprint, file_sha256=digest)


def encoded(model: "tokenizers.Tokenizer", texts: Sequence[bytes]) -> list[np.ndarray]:
    """Ids (int32) of each text, without special ones, in the library's own threads.

    Raises:
      UserError: a text is not UTF-8.
    """
    encodings = model.encode_batch_fast(
        [utf8(text) for text in texts], add_special_tokens=False
    )
    return [np.asarray(encoding.ids, np.int32) for encoding in encodings]


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(abc.ABC):
    """How text becomes token ids."""

    def identity(self) -> Any:
        """What the tokenizer depends on, besides the texts; as JSON can write it."""
        return dataclasses.asdict(self)

    @abc.abstractmethod
    def build(self, texts: Iterable[bytes]) -> Tokenizer:
        """The tokenizer; it may learn from the texts, which are UTF-8."""


@dataclasses.dataclass(frozen=True)
class Bytes(TokenizerConfig):
    """A byte is an id: 259 ids, nothing to learn."""

    def build(self, texts: Iterable[bytes]) -> Tokenizer:
        """Does not read the texts."""
        return ByteTokenizer()


@dataclasses.dataclass(frozen=True)
class BPE(TokenizerConfig):
    """Byte-level byte-pair encoding, learned from the training documents."""

    vocab_size: int
    """Number of ids: 256 for bytes, 3 special ones, and one for each merge."""
    train_bytes: int = 1_000_000_000
    """Bytes of text to learn from: the first ones. Where both this and the text to
    train on have more than 200 MB, about 200 MB are drawn from all of it."""

    def __post_init__(self):
        require_positive(self, "train_bytes")
        least = 256 + N_SPECIAL
        if self.vocab_size < least:
            raise UserError(
                f"BPE({self.vocab_size}) has no room for 256 bytes and "
                f"{N_SPECIAL} special ids; ask for at least {least}."
            )

    def build(self, texts: Iterable[LongText]) -> Tokenizer:
        """Learns the merges; the same texts in the same order give the same merges."""
        import tokenizers

        print(f"learning the tokenizer: {self.vocab_size:,} ids", file=for_messages())
        model = tokenizers.Tokenizer(tokenizers.models.BPE())
        model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
            add_prefix_space=False
        )
        model.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self.vocab_size - N_SPECIAL,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        model.train_from_iterator(first_pieces(texts, self.train_bytes), trainer)
        return BPETokenizer(model)


def load(directory: str | pathlib.Path) -> Tokenizer:
    """The tokenizer that `save` wrote to a directory.

    Raises:
      UserError: there is none, or it has changed since.
    """
    try:
        mark = json.loads(pathlib.Path(directory, MARK).read_text())
        name, expected = mark["type"], mark["fingerprint"]
        if unknown := mark.keys() - {"type", "fingerprint", "file_sha256", "special"}:
            raise ValueError(f"it has the unknown keys {sorted(unknown)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{directory} holds no tokenizer: {MARK} cannot be read ({error})."
        ) from error
    if name not in (loaders := _loaders()):
        raise UserError(
            f"{directory} holds an unknown tokenizer {name!r}; jaxpar knows "
            f"{[*loaders]}."
        )
    if digest := mark.get("file_sha256"):  # Older versions did not write it.
        _check_hash(pathlib.Path(directory, FILE), digest)
    tokenizer = loaders[name](pathlib.Path(directory))
    if tokenizer.fingerprint != expected:
        raise UserError(
            f"{directory}: the tokenizer's hash is {tokenizer.fingerprint[:16]}, but "
            f"{expected[:16]} was saved; copy the directory again from its source."
        )
    return tokenizer


def _check_hash(path: pathlib.Path, sha256: str) -> None:
    """Refuses a file with other bytes, also where its vocabulary is still the same."""
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    if found != sha256:
        raise UserError(
            f"{path} is not what was saved (its hash differs); copy {path.parent} "
            "again from its source."
        )


def _load_bpe(directory: pathlib.Path) -> Tokenizer:
    import tokenizers

    path = directory / FILE
    try:
        text = path.read_text("utf-8")
        return BPETokenizer(tokenizers.Tokenizer.from_str(text))
    except Exception as error:  # The library raises plain Exception.
        raise UserError(f"{path} is not a tokenizer: {error}.") from error


def _loaders() -> dict[str, Callable[[pathlib.Path], Tokenizer]]:
    """What loads each type of tokenizer that a MARK may name."""
    from jaxpar.data import added_tokens, tokenizer_file  # They import this module.

    return {
        "Bytes": lambda directory: ByteTokenizer(),
        "BPE": _load_bpe,
        "AddedTokens": added_tokens.load_added,
        "File": tokenizer_file.load_file,
    }


def write_mark(
    directory: str | pathlib.Path, name: str, fingerprint: str, **more: Any
) -> None:
    """Writes MARK: the tokenizer's type, its fingerprint, and more."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    mark = {"type": name, "fingerprint": fingerprint, **more}
    atomic.write_bytes(directory / MARK, (json.dumps(mark) + "\n").encode())
