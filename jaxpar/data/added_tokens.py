"""A tokenizer with more tokens: further texts that become one id each."""

import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from jaxpar import atomic
from jaxpar.data import tokenizer
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.errors import UserError

BASE = "base"
"""The directory of the tokenizer that is added to."""
ADDED = "added_tokens.json"
"""The texts, in the order of their ids."""


class AddedTokens(Tokenizer):
    """Another tokenizer, and after its last id one for each added text.

    All of its ids keep their meaning, those of padding, begin and end among them. Text
    without any of the added ones has the same ids as before. Where several of these
    texts begin at the same place, the longest counts.
    """

    def __init__(self, base: Tokenizer, texts: Sequence[str]):
        """base: the tokenizer that is added to.

        Raises:
          UserError: a text is empty, given twice, not UTF-8, or has an id already.
        """
        texts = tuple(texts)
        for i, text in enumerate(texts):
            _check_new(base, text, texts[:i])
        if isinstance(base, AddedTokens):
            base, texts = base.base, (*base.texts, *texts)
        self.base, self.texts = base, texts
        self.n_plain, self.special = base.n_plain, base.special
        ids = enumerate(texts, base.vocab_size)
        self._id_of = {text.encode(): i for i, text in ids}
        longest_first = sorted(self._id_of, key=len, reverse=True)
        identity = json.dumps([base.fingerprint, texts])
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        self._pattern = re.compile(b"(%s)" % b"|".join(map(re.escape, longest_first)))

    @property
    def vocab_size(self) -> int:
        return self.base.vocab_size + len(self.texts)

    def encode_many(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each text; what stands between added texts is encoded by itself."""
        # Of a split by a group, every second piece is what the group has matched.
        pieces = [self._pattern.split(text) for text in texts]
        between = [each for split in pieces for each in split[::2]]
        plain = iter(self.base.encode_many(between))

        def ids(split: list[bytes]) -> np.ndarray:
            added = (np.full(1, self._id_of[each], np.int32) for each in split[1::2])
            parts = [next(plain)]
            for one in added:
                parts += [one, next(plain)]
            return np.concatenate(parts)

        return [ids(split) for split in pieces]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of all ids but those of padding, begin and end."""
        text, run, first = "", [], self.base.vocab_size
        for i in map(int, ids):
            if first <= i < self.vocab_size:
                text += self.base.decode(run) + self.texts[i - first]
                run = []
            else:
                run.append(i)
        return text + self.base.decode(run)

    def save(self, directory: str | pathlib.Path) -> None:
        """The other tokenizer in a directory of its own, the texts, and a mark."""
        directory = pathlib.Path(directory)
        self.base.save(directory / BASE)
        mark = {"type": AddedTokens.__name__, "fingerprint": self.fingerprint}
        for name, value in ((ADDED, self.texts), (tokenizer.MARK, mark)):
            atomic.write_bytes(directory / name, (json.dumps(value) + "\n").encode())


def load_added(directory: pathlib.Path) -> AddedTokens:
    """What `AddedTokens.save` wrote; jaxpar.data.tokenizer.load compares the hash.

    Raises:
      UserError: its files cannot be read.
    """
    path = directory / ADDED
    try:
        texts = json.loads(path.read_text("utf-8"))
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("an added token is no text")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} lists no added tokens: {error}.") from error
    return AddedTokens(tokenizer.load(directory / BASE), texts)


def _check_new(base: Tokenizer, text: str, before: Sequence[str]) -> None:
    """Refuses a text that cannot be a token, or is one already."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"add_tokens: {text!r} is not UTF-8; leave it out.") from error
    if not encoded:
        raise UserError("add_tokens holds an empty text; leave it out.")
    if text in before:
        raise UserError(f"add_tokens names {text!r} twice; leave one out.")
    if len(ids := base.encode(encoded)) == 1:
        raise UserError(
            f"add_tokens: {text!r} is a token already, with the id {ids[0]}; leave it "
            "out."
        )
