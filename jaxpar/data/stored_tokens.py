"""Token files on the disk: opened with their metadata, read in slices.

The files of one part of a corpus, in a folder of its preparation:

    meta.json          counts, dtype, and a digest of all that it says
    tokens.bin         the ids of all items, one after another
    items.npy          an array [3, items], see windows.Items
    *.crc32            checksums of the two, see block_checksums

Older versions of jaxpar wrote no checksums. Their files are opened as they are: sizes
and counts are checked, and the hash of tokens up to CHECKED_BYTES.
"""

import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np

from jaxpar import cache
from jaxpar.data.block_checksums import CheckedFile, ChecksumWriter, damaged, unreadable
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.data.windows import Items, TokenFile
from jaxpar.guard.sealed_json import json_object

META, TOKENS, ITEMS = "meta.json", "tokens.bin", "items.npy"
DIGEST = "meta_sha256"
CHECKED_BYTES = 1 << 30
"""Token files up to this size are checked as a whole when they are opened."""
HEADER_BYTES = 1 << 12
"""More than the header of an .npy file of one array has."""
OLDER_KEYS = {
    *("dtype", "items", "tokens", "bytes", "max_id", "sha256"),
    *("tokenizer", "probe", "xz_nats_per_byte"),
}
"""What the metadata says where there are no checksums; newer files say more."""


class StoredTokens:
    """The token ids of a file, read when a slice is asked for."""

    def __init__(self, file: CheckedFile, dtype: np.dtype, max_id: int):
        self._file, self._dtype, self._max_id = file, dtype, max_id

    def __len__(self) -> int:
        return self._file.size // self._dtype.itemsize

    def __getitem__(self, where: slice) -> np.ndarray:
        """The ids of a slice.

        Raises:
          DataWentBad: they are not what was written.
        """
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise IndexError(f"Ids are read one after another, not in steps of {step}.")
        size = self._dtype.itemsize
        raw = self._file.read(start * size, max(start, stop) * size)
        ids = np.frombuffer(raw, self._dtype)
        if len(ids) and (largest := ids.max()) > self._max_id:
            raise self._file.damaged(
                f"is damaged: of ids {start} to {stop} one is {largest}, and its "
                f"{META} says that none is larger than {self._max_id}"
            )
        return ids


def write_items(folder: pathlib.Path, items: Items) -> dict[str, Any]:
    """Writes ITEMS; what the metadata says of it, under `files`."""
    with ChecksumWriter(folder / ITEMS) as file:
        np.save(file, np.array([items.ends, items.prompts, items.sizes], np.int64))
    return file.facts


def write_meta(folder: pathlib.Path, meta: dict[str, Any]) -> None:
    """Writes META, which ends with a digest of what it says."""
    (folder / META).write_text(_text(meta), "utf-8")


def read_meta(folder: pathlib.Path) -> dict[str, Any]:
    """What META says.

    Raises:
      DataWentBad: it is absent or damaged.
      UserError: it may not be read by this user.
    """
    path, preparation = folder / META, folder.parent
    try:
        raw = path.read_bytes()
        meta = json_object(raw)
    except (OSError, ValueError) as error:
        raise unreadable(path, error, preparation=preparation) from error
    if meta.keys() == OLDER_KEYS:
        return meta
    meta.pop(DIGEST, None)
    if raw != _text(meta).encode():
        what = "is damaged: it is not what was written (its digest differs)"
        raise damaged(path, what, preparation=preparation)
    return meta


def open_token_file(folder: pathlib.Path, tokenizer: Tokenizer) -> TokenFile:
    """Opens what `write_token_files` wrote for one part.

    Raises:
      DataWentBad: the files have changed since they were written.
      UserError: they may not be read by this user.
    """
    meta = read_meta(folder)
    try:
        dtype, max_id = np.dtype(meta["dtype"]), int(meta["max_id"])
        facts = meta.get("files") or {TOKENS: None, ITEMS: None}
        xz, counts = meta["xz_nats_per_byte"], (meta["tokens"], meta["bytes"])
        if dtype not in (np.uint16, np.uint32) or not max_id < tokenizer.vocab_size:
            raise ValueError(
                f"ids of type {dtype}, up to {max_id}, while the tokenizer has "
                f"{tokenizer.vocab_size}"
            )
        if meta["tokenizer"] != tokenizer.fingerprint:
            raise ValueError("it is of another tokenizer")
    except (KeyError, TypeError, ValueError) as error:
        raise unreadable(folder / META, error, preparation=folder.parent) from error
    file = CheckedFile(folder / TOKENS, facts[TOKENS], preparation=folder.parent)
    if file.size != meta["tokens"] * dtype.itemsize:
        raise file.damaged(f"has {file.size} bytes, which are not {meta['tokens']} ids")
    if file.size <= CHECKED_BYTES:
        _check_whole(file, None if facts[TOKENS] else meta["sha256"])
    index = CheckedFile(folder / ITEMS, facts[ITEMS], preparation=folder.parent)
    items = _items(index, meta["items"], *counts)
    return TokenFile(StoredTokens(file, dtype, max_id), *items, tokenizer.pad_id, xz)


def _check_whole(file: CheckedFile, sha256: str | None) -> None:
    """Checks all blocks of a file, or the hash of one that has no checksums."""
    if sha256 is None:
        file.check_all()
    elif cache.sha256(file.path) != sha256:
        raise file.damaged("is not what was prepared (its hash differs)")


def _items(file: CheckedFile, n: int, n_tokens: int, n_bytes: int) -> Items:
    """The items of a file, whose entries must agree with each other and the counts."""
    raw = file.read_all()
    try:
        stream = io.BytesIO(raw[:HEADER_BYTES].tobytes())
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"version {version} of its format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        ends, prompts, sizes = raw[stream.tell() :].view(dtype).reshape(shape)
    except (ValueError, TypeError) as error:
        raise file.damaged(f"is damaged: {error}") from error
    if shape != (3, n) or dtype != np.int64:
        raise file.damaged(f"is damaged: {dtype} {shape} is not int64 {(3, n)}")
    lengths = np.diff(ends, prepend=0)
    if not (
        (ends[-1] if n else 0) == n_tokens
        and sizes.sum() == n_bytes
        and bool(((prompts >= 1) & (lengths > prompts) & (sizes >= 0)).all())
    ):
        raise file.damaged("is damaged: its entries contradict each other")
    return Items(ends, prompts, sizes)


def _text(meta: dict[str, Any]) -> str:
    """The text of META."""
    body = json.dumps(meta, indent=1)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**meta, DIGEST: digest}, indent=1) + "\n"
