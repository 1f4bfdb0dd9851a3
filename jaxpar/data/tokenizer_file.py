"""A tokenizer of one's own: any tokenizer.json of the library `tokenizers`."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxpar import atomic
from jaxpar.data import tokenizer
from jaxpar.data.tokenizer import SpecialIds, Tokenizer, TokenizerConfig
from jaxpar.errors import UserError
from jaxpar.guard.sealed_json import json_object
from jaxpar.sources import patterns
from jaxpar.tables import say_once

if TYPE_CHECKING:
    import tokenizers

SPECIAL_TOKEN_FILES = ("special_tokens_map.json", "tokenizer_config.json")
"""Files beside a tokenizer.json that may name its special tokens; the last one wins."""
USUAL = {
    "bos": ("<s>", "<|begin_of_text|>", "<bos>", "[BOS]", "<|startoftext|>"),
    "eos": ("</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|endoftext|>"),
}
"""What begins or ends a text is named so, where nothing else says which it is."""
PROBE_BYTES = 2_000


class LoadedTokenizer(Tokenizer):
    """The tokenizer that a tokenizer.json describes, with its own special ids.

    The text of a special token in a document is plain text.
    """

    def __init__(
        self, model: "tokenizers.Tokenizer", content: bytes, special: SpecialIds
    ):
        """content: of the file that the library's `model` was read from."""
        self.model, self._content, self.special = model, content, special
        self.n_plain = 1 + max(self.model.get_vocab().values())
        identity = json.dumps([hashlib.sha256(content).hexdigest(), *special])
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()

    def encode_many(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        return tokenizer.encoded(self.model, texts)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special ones, and those without a token, are skipped."""
        known = [int(i) for i in ids if 0 <= i < self.n_plain]
        return self.model.decode(known, skip_special_tokens=True)

    def save(self, directory: str | pathlib.Path) -> None:
        """A copy of the file, and a mark with the special ids."""
        pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(pathlib.Path(directory, tokenizer.FILE), self._content)
        digest = hashlib.sha256(self._content).hexdigest()
        mark = {"file_sha256": digest, "special": [*self.special]}
        tokenizer.write_mark(directory, "File", self.fingerprint, **mark)


def content_of(path: str) -> list[Any]:
    """A hash of a tokenizer.json, and the special tokens that files beside it name."""
    file = _file(path)
    return [hashlib.sha256(file.read_bytes()).hexdigest(), _named_beside(file)]


@dataclasses.dataclass(frozen=True)
class TokenizerFile(TokenizerConfig):
    """A tokenizer.json that is there already; its special tokens are honoured."""

    path: str = dataclasses.field(metadata={"identity": "never", "content": content_of})
    """The tokenizer.json, or its folder; what it holds counts, not where it is."""
    eos: str = ""
    """The token that ends a text, where the file does not say which it is."""
    bos: str = ""
    """The token that begins a text; where there is none, the one that ends it."""

    def identity(self) -> Any:
        return [content_of(self.path), self.eos, self.bos]

    def build(self, texts: Iterable[bytes]) -> Tokenizer:
        """Learns nothing; tries the first text, and says so if it comes back changed.

        Raises:
          UserError: the file cannot be read, or what ends a text cannot be found.
        """
        # Heavy: it imports JAX, which those who only load a tokenizer do without.
        from jaxpar.partition import cluster

        file = _file(self.path)
        model, content = _read(file)
        built = LoadedTokenizer(model, content, _special(file, model, self))
        for text in itertools.islice(texts, 1):
            probe = text[:PROBE_BYTES].decode("utf-8", "ignore")
            if built.decode(built.encode(probe.encode())) != probe:
                how = "does not give back every text that it reads"
                line = f"{file} {how}; nats per byte are of the bytes as they were."
                say_once(line, is_first=cluster.is_first())
        return built


def load_file(directory: pathlib.Path) -> LoadedTokenizer:
    """What `LoadedTokenizer.save` wrote; jaxpar.data.tokenizer.load compares hashes."""
    special = json.loads((directory / tokenizer.MARK).read_text())["special"]
    return LoadedTokenizer(*_read(directory / tokenizer.FILE), SpecialIds(*special))


def _file(path: str) -> pathlib.Path:
    found = patterns.located(path)
    file = found / tokenizer.FILE if found and found.is_dir() else found
    if file is None or not file.is_file():
        raise UserError(
            f"There is no tokenizer {file or path} (from {pathlib.Path.cwd()}); name a "
            "tokenizer.json, or its folder."
        )
    return file


def _read(file: pathlib.Path) -> tuple["tokenizers.Tokenizer", bytes]:
    """The library's tokenizer, which neither cuts nor pads, and the file's content.

    It finds no special token in a text.

    Raises:
      UserError: the file is no tokenizer.
    """
    import tokenizers

    content = file.read_bytes()
    try:
        model = tokenizers.Tokenizer.from_str(content.decode())
        if not model.get_vocab():
            raise ValueError("it has no tokens")
    except Exception as error:  # The library raises plain Exception.
        raise UserError(f"{file} is not a tokenizer.json: {error}.") from error
    model.no_truncation()
    model.no_padding()
    model.encode_special_tokens = True
    return model, content


def _special(
    file: pathlib.Path, model: "tokenizers.Tokenizer", asked: TokenizerFile
) -> SpecialIds:
    """The special ids that files name, or flags, or else their usual names."""
    named = _named_beside(file)
    added = model.get_added_tokens_decoder().values()
    names = [token.content for token in added if token.special]
    first, last = _around(model)

    def usual(role: str) -> str | None:
        found = [name for name in names if name in USUAL[role]]
        return found[0] if len(found) == 1 else None

    eos = asked.eos or named.get("eos") or last or usual("eos")
    if eos is None:
        raise UserError(
            f"{file} does not say which token ends a text; say it with "
            f"--data.tokenizer.eos; its special tokens are {names}."
        )
    bos = asked.bos or named.get("bos") or first or usual("bos") or eos
    ids = []
    for token in (named.get("pad", eos), bos, eos):
        if (i := model.token_to_id(token)) is None:
            raise UserError(f"{file} has no token {token!r}; special ones: {names}.")
        ids.append(i)
    return SpecialIds(*ids)


def _around(model: "tokenizers.Tokenizer") -> tuple[str | None, str | None]:
    """The tokens that the post-processor puts before and after a text."""
    plain = model.encode("a", add_special_tokens=False).tokens
    full = model.encode("a").tokens
    starts = (i for i in range(len(full)) if full[i : i + len(plain)] == plain)
    before = next(starts, 0)
    after = full[before + len(plain) :]
    return full[0] if before else None, after[-1] if after else None


def _named_beside(file: pathlib.Path) -> dict[str, str]:
    """Texts of pad, bos and eos, as far as files beside a tokenizer.json name them."""
    found = {}
    for name in SPECIAL_TOKEN_FILES:
        path = file.with_name(name)
        try:
            content = json_object(path.read_bytes()) if path.is_file() else {}
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}); correct it.") from error
        for role in SpecialIds._fields:
            token = content.get(f"{role}_token")
            token = token.get("content") if isinstance(token, dict) else token
            if token and not isinstance(token, str):
                raise UserError(
                    f"{path}: {role}_token is {token!r}; it must be a text."
                )
            found |= {role: token} if token else {}
    return found
