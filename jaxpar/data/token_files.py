"""Token files: documents or examples, tokenised once and written to the cache."""

import functools
import itertools
import lzma
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpar import cache
from jaxpar.data import stored_tokens
from jaxpar.data.block_checksums import ChecksumWriter
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.data.windows import Items
from jaxpar.errors import UserError
from jaxpar.sources.corpus import Example
from jaxpar.sources.duplicates import CountInBothParts
from jaxpar.tables import for_messages

FORMAT = 1
XZ_LIMIT = 100_000_000
"""Parts of more bytes are not compressed: xz -9 reads about 2 MB/s."""
BULK_BYTES = 4_000_000
"""Text that is tokenised in one call."""
PIECE_BYTES = 1_000_000
"""Longer texts are cut into pieces, which are tokenised in parallel."""
GROUP_PIECES = 4
"""Pieces of one long text that are tokenised in one call."""
PROBE_BYTES = 2_000


class Encoded(NamedTuple):
    """An item with the ids of its prompt's pieces, and of its answer's in groups.

    Those of a long answer are made when they are asked for.
    """

    item: Example
    prompt: list[np.ndarray]
    answer: Iterable[list[np.ndarray]]


def write_token_files(
    names: Iterable[str],
    read: Callable[[str], Sequence[Example]],
    tokenizer: Tokenizer,
    *,
    content: str,
    progress: bool,
) -> pathlib.Path:
    """The directory with a folder of token files for each named part.

    `read` returns a part's items; it is called only if the files do not exist yet.
    `content` is a hash of all items. Every part but `train` is also compressed with xz.
    """
    path = cache.root() / "windows" / identity(content, tokenizer)
    cache.build_once(path, functools.partial(_write, names, read, tokenizer, progress))
    _check_probes(path, tokenizer)
    return path


def identity(content: str, tokenizer: Tokenizer) -> str:
    """A hash of content, tokenizer and the versions of the libraries that are used."""
    return cache.key(
        format=FORMAT,
        content=content,
        tokenizer=tokenizer.fingerprint,
        versions=cache.versions("tokenizers", "tensorflow-datasets", "array-record"),
    )


def xz_nats_per_byte(texts: Iterable[bytes]) -> float:
    """The size of the texts, one after another, as xz -9 compresses them."""
    compressor, n, n_compressed = lzma.LZMACompressor(preset=9), 0, 0
    for text in texts:
        n += len(text)
        n_compressed += len(compressor.compress(text))
    n_compressed += len(compressor.flush())
    return n_compressed * 8 * math.log(2) / n


def _write(
    names: Iterable[str],
    read: Callable[[str], Sequence[Example]],
    tokenizer: Tokenizer,
    progress: bool,
    directory: pathlib.Path,
) -> None:
    print("writing the text down as tokens, once", file=for_messages())
    both = CountInBothParts()
    for name in names:
        items = both.watched(name, read(name))
        folder = directory / name
        folder.mkdir()
        meta = _write_tokens(folder, name, items, tokenizer, progress)
        small = name != "train" and 0 < meta["bytes"] <= XZ_LIMIT
        texts = (item.answer for item in items)
        meta["xz_nats_per_byte"] = xz_nats_per_byte(texts) if small else None
        meta["in_both_parts"] = both.count()
        stored_tokens.write_meta(folder, meta)


def _write_tokens(
    folder: pathlib.Path,
    name: str,
    items: Sequence[Example],
    tokenizer: Tokenizer,
    progress: bool,
) -> dict[str, Any]:
    """Writes the tokens of one part, and returns what meta.json says of them.

    Raises:
      UserError: the tokenizer makes an id beyond its vocabulary.
    """
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    prompts, ends, sizes, end, largest = [], [], [], 0, 0
    with ChecksumWriter(folder / stored_tokens.TOKENS) as file:
        for encoded in _encoded(items, name, tokenizer, progress):
            head = [[tokenizer.bos_id], *encoded.prompt]
            tail = [[tokenizer.eos_id]]
            for group in itertools.chain([head], encoded.answer, [tail]):
                ids = np.concatenate(group)
                file.write(ids.astype(dtype).tobytes())
                end += len(ids)
                largest = max(largest, int(ids.max()))
            ends.append(end)
            prompts.append(1 + sum(len(piece) for piece in encoded.prompt))
            sizes.append(len(encoded.item.answer))
    if largest >= tokenizer.vocab_size:
        raise UserError(
            f"The tokenizer made id {largest}, but it says that it has only "
            f"{tokenizer.vocab_size}; repair its vocab_size."
        )
    items_of_file = Items(np.array(ends), np.array(prompts), np.array(sizes))
    items_facts = stored_tokens.write_items(folder, items_of_file)
    return {
        "dtype": np.dtype(dtype).name,
        "items": len(ends),
        "tokens": end,
        "bytes": sum(sizes),
        "max_id": largest,
        "sha256": file.sha256.hexdigest(),
        "tokenizer": tokenizer.fingerprint,
        "probe": _probe(items, tokenizer),
        "files": {stored_tokens.TOKENS: file.facts, stored_tokens.ITEMS: items_facts},
    }


def _encoded(
    items: Sequence[Example], name: str, tokenizer: Tokenizer, progress: bool
) -> Iterator[Encoded]:
    """Each item with its ids, in order, under a progress bar."""
    from tqdm.auto import tqdm

    # With `None`, tqdm shows nothing where stderr is no terminal.
    what, off = f"tokenise {name}", None if progress else True
    with tqdm(total=len(items), desc=what, unit="doc", disable=off) as bar:
        for bulk in _bulks(items):
            if len(bulk) == 1:
                yield _encoded_alone(bulk[0], tokenizer)
            else:
                yield from _encoded_together(bulk, tokenizer)
            bar.update(len(bulk))


def _encoded_together(bulk: list[Example], tokenizer: Tokenizer) -> Iterator[Encoded]:
    cut = [([*_pieces(item.prompt)], [*_pieces(item.answer)]) for item in bulk]
    flat = [piece for both in cut for pieces in both for piece in pieces]
    ids = iter(tokenizer.encode_many(flat))
    for item, (prompt, answer) in zip(bulk, cut, strict=True):
        prompt_ids = [next(ids) for _ in prompt]
        answer_ids = [next(ids) for _ in answer]
        yield Encoded(item, prompt_ids, [answer_ids] if answer_ids else [])


def _encoded_alone(item: Example, tokenizer: Tokenizer) -> Encoded:
    """One item, of whose answer no more than GROUP_PIECES are in memory at a time."""
    prompt, pieces = [*_pieces(item.prompt)], _pieces(item.answer)
    groups = iter(lambda: [*itertools.islice(pieces, GROUP_PIECES)], [])
    answer = map(tokenizer.encode_many, groups)
    return Encoded(item, tokenizer.encode_many(prompt), answer)


def _bulks(items: Sequence[Example]) -> Iterator[list[Example]]:
    """The items in lists of about BULK_BYTES; one that is longer is alone."""
    bulk, size = [], 0
    for item in items:
        added = len(item.prompt) + len(item.answer)
        if bulk and size + added > BULK_BYTES:
            yield bulk
            bulk, size = [], 0
        bulk.append(item)
        size += added
    if bulk:
        yield bulk


def _pieces(text: bytes) -> Iterator[bytes]:
    """A text, cut at line ends where it is longer than PIECE_BYTES."""
    start = 0
    while len(text) - start > PIECE_BYTES:
        stop = text.rfind(b"\n", start, start + PIECE_BYTES) + 1
        if stop <= start:
            stop = start + PIECE_BYTES
            while text[stop] & 0xC0 == 0x80:  # In the middle of a UTF-8 character.
                stop -= 1
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


def _probe(items: Sequence[Example], tokenizer: Tokenizer) -> dict[str, Any]:
    """The start of the first answer with its ids, for `_check_probes`."""
    if not len(items):
        return {"text": "", "ids": []}
    text = items[0].answer[:PROBE_BYTES].decode("utf-8", "ignore")
    return {"text": text, "ids": tokenizer.encode(text.encode()).tolist()}


def _check_probes(path: pathlib.Path, tokenizer: Tokenizer) -> None:
    """Refuses token files that the installed libraries would write differently."""
    for file in sorted(path.glob(f"*/{stored_tokens.META}")):
        probe = stored_tokens.read_meta(file.parent)["probe"]
        if tokenizer.encode(probe["text"].encode()).tolist() != probe["ids"]:
            raise UserError(
                f"{file} holds other tokens for {probe['text'][:40]!r} than the "
                f"tokenizer gives now; delete {path} and prepare again."
            )
