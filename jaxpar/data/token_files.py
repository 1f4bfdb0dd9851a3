"""Documents tokenised once, into files."""

import functools
import json
import lzma
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from jaxpar import cache
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.errors import UserError
from jaxpar.sources.corpus import Example

FORMAT = 1
XZ_LIMIT = 100_000_000  # Bytes; xz -9 reads some 2 MB/s.
BULK_BYTES = 4_000_000
PIECE_BYTES = 1_000_000
PROBE_BYTES = 2_000


def write_token_files(
    names: Iterable[str],
    read: Callable[[str], Sequence[Example]],
    tokenizer: Tokenizer,
    *,
    content: str,
    progress: bool,
) -> pathlib.Path:
    """The directory with a folder of token files for each named part.

    `read` is asked for a part's items only where they are not laid out yet: `content`
    is a hash of them all. xz is tried on every part but `train`.
    """
    path = cache.root() / "windows" / identity(content, tokenizer)
    cache.build_once(path, functools.partial(_write, names, read, tokenizer, progress))
    _compare(path, tokenizer)
    return path


def identity(content: str, tokenizer: Tokenizer) -> str:
    """Changes with content, tokenizer or the libraries that turn one into the other."""
    return cache.key(
        format=FORMAT,
        content=content,
        tokenizer=tokenizer.fingerprint,
        versions=cache.versions("tokenizers", "tensorflow-datasets", "array-record"),
    )


def xz_nats_per_byte(texts: Iterable[bytes]) -> float:
    """What xz -9 needs for the texts, one behind the other."""
    compressor, n, n_compressed = lzma.LZMACompressor(preset=9), 0, 0
    for text in texts:
        n += len(text)
        n_compressed += len(compressor.compress(text))
    n_compressed += len(compressor.flush())
    return n_compressed * 8 * math.log(2) / n


def _write(names, read, tokenizer: Tokenizer, progress, aside: pathlib.Path) -> None:
    for name in names:
        items = read(name)
        folder = aside / name
        folder.mkdir()
        meta = _write_tokens(folder, name, items, tokenizer, progress)
        small = name != "train" and 0 < meta["bytes"] <= XZ_LIMIT
        texts = (item.answer for item in items)
        meta["xz_nats_per_byte"] = xz_nats_per_byte(texts) if small else None
        (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def _write_tokens(folder, name, items, tokenizer: Tokenizer, progress) -> dict:
    """Writes one part; a token beyond the vocabulary stops it."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    prompts, ends, sizes, end, largest = [], [], [], 0, 0
    with open(folder / "tokens.bin", "wb") as file:
        for item, prompt, answer in _encoded(items, name, tokenizer, progress):
            ids = np.concatenate([[tokenizer.bos_id], *prompt, *answer])
            ids = np.append(ids, tokenizer.eos_id)
            file.write(ids.astype(dtype).tobytes())
            end += len(ids)
            largest = max(largest, int(ids.max()))
            ends.append(end)
            prompts.append(1 + sum(len(piece) for piece in prompt))
            sizes.append(len(item.answer))
    if largest >= tokenizer.vocab_size:
        raise UserError(
            f"The tokenizer made id {largest}, but it says that it has only "
            f"{tokenizer.vocab_size}; repair its vocab_size."
        )
    np.save(folder / "items.npy", np.array([ends, prompts, sizes], np.int64))
    return {
        "dtype": np.dtype(dtype).name,
        "items": len(ends),
        "tokens": end,
        "bytes": sum(sizes),
        "max_id": largest,
        "sha256": cache.sha256(folder / "tokens.bin"),
        "tokenizer": tokenizer.fingerprint,
        "probe": _probe(items, tokenizer),
    }


def _encoded(items, name, tokenizer: Tokenizer, progress: bool) -> Iterator[tuple]:
    """Each item with the ids of its prompt's and its answer's pieces."""
    from tqdm.auto import tqdm

    # `None` lets tqdm be silent where stderr is no terminal.
    off = None if progress else True
    with tqdm(
        total=len(items), desc=f"tokenise {name}", unit="doc", disable=off
    ) as bar:
        for bulk in _bulks(items):
            cut = [(_pieces(item.prompt), _pieces(item.answer)) for item in bulk]
            flat = [piece for both in cut for part in both for piece in part]
            ids = iter(tokenizer.encode_many(flat))
            for item, (prompt, answer) in zip(bulk, cut, strict=True):
                yield item, [next(ids) for _ in prompt], [next(ids) for _ in answer]
            bar.update(len(bulk))


def _bulks(items: Sequence[Example]) -> Iterator[list[Example]]:
    bulk, size = [], 0
    for item in items:
        bulk.append(item)
        size += len(item.prompt) + len(item.answer)
        if size >= BULK_BYTES:
            yield bulk
            bulk, size = [], 0
    if bulk:
        yield bulk


def _pieces(text: bytes) -> list[bytes]:
    """A long text cut at lines, so that one huge file is tokenised in parallel."""
    pieces, start = [], 0
    while len(text) - start > PIECE_BYTES:
        stop = text.rfind(b"\n", start, start + PIECE_BYTES) + 1
        if stop <= start:
            stop = start + PIECE_BYTES
            while text[stop] & 0xC0 == 0x80:  # Inside a character of UTF-8.
                stop -= 1
        pieces.append(text[start:stop])
        start = stop
    if start < len(text):
        pieces.append(text[start:])
    return pieces


def _probe(items: Sequence[Example], tokenizer: Tokenizer) -> dict:
    """A start of the first item and its ids, kept to be compared with later."""
    if not len(items):
        return {"text": "", "ids": []}
    text = items[0].answer[:PROBE_BYTES].decode("utf-8", "ignore")
    return {"text": text, "ids": tokenizer.encode(text.encode()).tolist()}


def _compare(path: pathlib.Path, tokenizer: Tokenizer) -> None:
    """Refuses windows that today's libraries would make otherwise."""
    for file in sorted(path.glob("*/meta.json")):
        probe = json.loads(file.read_text())["probe"]
        if tokenizer.encode(probe["text"].encode()).tolist() != probe["ids"]:
            raise UserError(
                f"{file} holds other tokens for {probe['text'][:40]!r} than the "
                f"tokenizer makes now; delete {path} and prepare again."
            )
