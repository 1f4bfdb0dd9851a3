"""Token files on the disk: opened with their metadata, read in slices.

The files of one part of a corpus, in a folder of its preparation:

    meta.json          counts, dtype, and a digest of all that it says
    tokens.bin         the ids of all items, one after another
    items.npy          an array [3, items], see windows.Items
    *.crc32            checksums of the two, see block_checksums

Older versions of jaxpar wrote no checksums. Their files are opened as they are: sizes
and counts are checked, and the hash of tokens up to HASHED_BYTES.
"""

import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np

from jaxpar import cache
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.data.windows import Numbers, TokenFile
from jaxpar.guard.sealed_json import json_object
from jaxpar.tokens.block_checksums import (
    CheckedFile,
    damaged,
    unreadable,
)
from jaxpar.tokens.part_writer import ITEMS, TOKENS

META = "meta.json"
DIGEST = "meta_sha256"
CHECKED_BYTES, HASHED_BYTES = 1 << 26, 1 << 30
"""Files up to this size are checked as a whole when they are opened; of larger ones
each block when it is first read, but for those without checksums."""
ITEMS_IN_MEMORY = 1 << 20
"""More items are looked up in their file: 100 GB of short records have 10^8."""
HEADER_BYTES = 1 << 12
"""More than the header of an .npy file of one array has."""
OLDER_KEYS = {
    *("dtype", "items", "tokens", "bytes", "max_id", "sha256"),
    *("tokenizer", "probe", "xz_nats_per_byte"),
}
"""What the metadata says where there are no checksums; newer files say more."""


class StoredNumbers:
    """Integers one after another in a file, read when a slice is asked for."""

    def __init__(
        self,
        file: CheckedFile,
        dtype: np.dtype,
        n: int,
        *,
        start: int = 0,
        largest: int | None = None,
    ):
        """start: the byte of the first. largest: what none of them may exceed."""
        self._file, self._dtype, self._n = file, dtype, n
        self._start, self._largest = start, largest

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, where: slice) -> np.ndarray:
        """The numbers of a slice.

        Raises:
          DataWentBad: they are not what was written.
        """
        start, stop, step = where.indices(self._n)
        if step != 1:
            raise IndexError(f"They are read one after another, not in steps of {step}")
        stop, size = max(start, stop), self._dtype.itemsize
        raw = self._file.read(self._start + start * size, self._start + stop * size)
        found, most = np.frombuffer(raw, self._dtype), self._largest
        if most is not None and len(found) and (largest := found.max()) > most:
            raise self._file.damaged(
                f"is damaged: of ids {start} to {stop} one is {largest}, and its "
                f"{META} says that none is larger than {most}"
            )
        return found


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
        xz, n_tokens, n_bytes = (
            meta[name] for name in ("xz_nats_per_byte", "tokens", "bytes")
        )
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
    if file.size != n_tokens * dtype.itemsize:
        raise file.damaged(f"has {file.size} bytes, which are not {n_tokens} ids")
    if file.size <= (CHECKED_BYTES if facts[TOKENS] else HASHED_BYTES):
        _check_whole(file, None if facts[TOKENS] else meta["sha256"])
    index = CheckedFile(folder / ITEMS, facts[ITEMS], preparation=folder.parent)
    ids = StoredNumbers(file, dtype, n_tokens, largest=max_id)
    prompts = meta.get("prompt_tokens")
    totals = None if prompts is None else (prompts, n_bytes)
    ends, prompts, sizes = _items(index, meta["items"])
    found = TokenFile(ids, ends, prompts, sizes, tokenizer.pad_id, xz, totals)
    if index.size <= CHECKED_BYTES or not facts[ITEMS]:
        _check_items(index, found, n_bytes)
    return found


def _check_whole(file: CheckedFile, sha256: str | None) -> None:
    """Checks all blocks of a file, or the hash of one that has no checksums."""
    if sha256 is None:
        file.check_all()
    elif cache.sha256(file.path) != sha256:
        raise file.damaged("is not what was prepared (its hash differs)")


def _items(file: CheckedFile, n: int) -> list[Numbers]:
    """The ends, prompts and sizes of n items; in memory where these are few."""
    raw = file.read(0, min(HEADER_BYTES, file.size))
    try:
        stream = io.BytesIO(raw)
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"version {version} of its format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, TypeError) as error:
        raise file.damaged(f"is damaged: {error}") from error
    begin, row = stream.tell(), n * dtype.itemsize
    if shape != (3, n) or dtype != np.int64 or file.size != begin + 3 * row:
        raise file.damaged(f"is damaged: {dtype} {shape} is not int64 {(3, n)}")
    stored = (StoredNumbers(file, dtype, n, start=begin + i * row) for i in range(3))
    return [each[:] for each in stored] if n <= ITEMS_IN_MEMORY else [*stored]


def _check_items(file: CheckedFile, found: TokenFile, n_bytes: int) -> None:
    """Refuses items that contradict each other, or what the metadata counts."""
    end, size = 0, 0
    for _, lengths, (ends, prompts, sizes) in found.in_blocks():
        end, size = int(ends[-1]), size + int(sizes.sum())
        if not ((prompts >= 1) & (lengths > prompts) & (sizes >= 0)).all():
            break
    else:
        if (end, size) == (len(found.tokens), n_bytes):
            return
    raise file.damaged("is damaged: its entries contradict each other")


def _text(meta: dict[str, Any]) -> str:
    """The text of META."""
    body = json.dumps(meta, indent=1)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**meta, DIGEST: digest}, indent=1) + "\n"
