"""Byte-level BPE, word by word: each different word is encoded once, then looked up."""

import json
import re
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tokenizers

MOST_WORDS, MOST_CHARACTERS = 1 << 18, 1 << 24
"""So many words, of so many characters together, are kept; then they are forgotten."""
CONTRACTIONS = "'(?:s|t|re|ve|m|ll|d)"
PLAIN = {
    "normalizer": None,
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "added_tokens": [],
}
"""What a tokenizer has to be for its words to be found here."""


class WordEncoder:
    """Gives the ids that the library's tokenizer gives to a whole text.

    That tokenizer cuts a text into words and encodes each by itself. Which characters
    are letters, digits or spaces is asked of the library for each one that appears.
    """

    def __init__(self, model: "tokenizers.Tokenizer"):
        """model: one that `is_plain`."""
        self._model = model
        self._classes: dict[str, str] = {}
        self._learn({chr(i) for i in range(128)})
        self._forget()

    def encode(self, text: str) -> np.ndarray:
        """The ids (int32) of a text."""
        if new := {*text} - self._classes.keys():
            self._learn(new)
        words = self._pattern.findall(text)
        numbers = [*map(self._numbers.get, words)]
        if None in numbers:
            # In the order of the text: the set's own order is another in each process.
            found = (w for w, n in zip(words, numbers, strict=True) if n is None)
            self._add([*dict.fromkeys(found)])
            numbers = [*map(self._numbers.__getitem__, words)]
        ids = self._ids_of(np.array(numbers, np.int64))
        if len(self._numbers) > MOST_WORDS or self._n_characters > MOST_CHARACTERS:
            self._forget()
        return ids

    def _ids_of(self, numbers: np.ndarray) -> np.ndarray:
        lengths = self._lengths[numbers]
        ends = np.cumsum(lengths)
        firsts = self._starts[numbers] - (ends - lengths)
        places = np.repeat(firsts, lengths) + np.arange(ends[-1] if len(ends) else 0)
        return self._ids[places]

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {}
        self._n_characters = 0
        self._starts = self._lengths = np.zeros(0, np.int64)
        self._ids = np.zeros(0, np.int32)

    def _add(self, words: list[str]) -> None:
        encodings = self._model.encode_batch_fast(words, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        lengths = np.array([len(each) for each in ids], np.int64)
        starts = len(self._ids) + np.cumsum(lengths) - lengths
        first = len(self._numbers)
        self._numbers |= {word: first + i for i, word in enumerate(words)}
        self._n_characters += sum(map(len, words))
        self._starts = np.concatenate([self._starts, starts])
        self._lengths = np.concatenate([self._lengths, lengths])
        flat = [np.array(each, np.int32) for each in ids]
        self._ids = np.concatenate([self._ids, *flat])

    def _learn(self, characters: set[str]) -> None:
        """Finds the classes of new characters, and what a word is with them."""
        pre_tokenizer = self._model.pre_tokenizer
        for character in sorted(characters):
            self._classes[character] = next(
                (
                    name
                    for name, like in (("L", "a"), ("N", "1"), ("O", "!"))
                    if len(pre_tokenizer.pre_tokenize_str(like + character)) == 1
                ),
                "S",
            )
        letters, digits, spaces = (
            "".join(re.escape(c) for c, name in self._classes.items() if name == kind)
            for kind in "LNS"
        )
        # The library's own pattern, in an order that is faster and finds the same.
        self._pattern = re.compile(
            f" ?[{letters}]+| ?[{digits}]+|{CONTRACTIONS}"
            f"| ?[^{letters}{digits}{spaces}]+"
            f"|[{spaces}]+(?![^{spaces}])|[{spaces}]+"
        )


def is_plain(model: "tokenizers.Tokenizer") -> bool:
    """Whether a tokenizer is byte-level BPE with nothing before or beside it."""
    content = json.loads(model.to_str())
    kind = content["model"]
    odd = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")
    return (
        kind["type"] == "BPE"
        and not any(kind[name] for name in odd)
        and all(content[name] == value for name, value in PLAIN.items())
    )
