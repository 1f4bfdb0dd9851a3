"""Token files: documents or examples, tokenised once and written to the cache."""

import functools
import lzma
import math
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxpar import cache
from jaxpar.data import stored_tokens
from jaxpar.data.encoding import program_for
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.errors import UserError
from jaxpar.sources.corpus import Example
from jaxpar.tables import for_messages
from jaxpar.tokens import part_writer, unfinished
from jaxpar.tokens.duplicates import count_in_both
from jaxpar.tokens.encoders import Encoders

FORMAT = 1
XZ_LIMIT = 100_000_000
"""Parts of more bytes are not compressed: xz -9 reads about 2 MB/s."""
BLOCK_BYTES = 1 << 20
PROBE_BYTES = 2_000
TOKENIZER = "tokenizer"
"""A copy for the processes that encode, until all is written."""


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
    unfinished.build(path, functools.partial(_write, names, read, tokenizer, progress))
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
    """Writes all parts; those that another process has written already stay."""
    is_begun = any(directory.glob(f"*/{part_writer.JOURNAL}"))
    how = "; a preparation that was stopped goes on" if is_begun else ""
    print(f"writing the text down as tokens, once{how}", file=for_messages())
    names, copy = [*names], directory / TOKENIZER
    with Encoders(tokenizer, copy, program_for(tokenizer)) as encoders:
        for name in names:
            if not (directory / name / stored_tokens.META).exists():
                _write_part(directory, name, read(name), tokenizer, encoders, progress)
    shutil.rmtree(copy, ignore_errors=True)
    for name in names:
        part_writer.remove_scaffold(directory / name)


def _write_part(
    directory: pathlib.Path,
    name: str,
    items: Sequence[Example],
    tokenizer: Tokenizer,
    encoders: Encoders,
    progress: bool,
) -> None:
    folder = directory / name
    folder.mkdir(exist_ok=True)
    writer = part_writer.PartWriter(folder, tokenizer)
    meta = writer.write(items, encoders, f"tokenise {name}", progress)
    meta["probe"] = _probe(items, tokenizer)
    small = name != "train" and 0 < meta["bytes"] <= XZ_LIMIT
    meta["xz_nats_per_byte"] = xz_nats_per_byte(_blocks(items)) if small else None
    meta["in_both_parts"] = _in_both_parts(directory) if name == "heldout" else 0
    stored_tokens.write_meta(folder, meta)


def _blocks(items: Sequence[Example]) -> Iterator[bytes]:
    """The answers of all items, one after another."""
    for item in items:
        for start in range(0, len(item.answer), BLOCK_BYTES):
            yield item.answer[start : start + BLOCK_BYTES]


def _in_both_parts(directory: pathlib.Path) -> int:
    """Items of the part `heldout` that are in `train`, too."""
    if not (directory / "train" / part_writer.ROWS).exists():
        return 0
    train, heldout = (
        (block["hash"] for block in part_writer.rows_of(directory / part))
        for part in ("train", "heldout")
    )
    return count_in_both(train, np.concatenate([np.zeros(0, np.uint64), *heldout]))


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
