"""Token files of one part of a corpus, written so that another process can go on."""

import dataclasses
import os
import pathlib
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from jaxpar.errors import UserError
from jaxpar.tables import for_messages
from jaxpar.tokens.block_checksums import ChecksumWriter
from jaxpar.tokens.encoders import Encoders, Tokenizer
from jaxpar.tokens.journal import Journal
from jaxpar.tokens.progress import Progress
from jaxpar.tokens.units import Item, Place, Unit, units

TOKENS, ITEMS = "tokens.bin", "items.npy"
ROWS, JOURNAL = "rows.bin", "journal.jsonl"
"""What stands beside the token files until all of them are whole."""
ROW = np.dtype([("end", "<i8"), ("prompt", "<i8"), ("size", "<i8"), ("hash", "<u8")])
"""Of an item; the first three are as in windows.Items."""
BLOCK_ROWS = 1 << 16
COMMIT_BYTES, COMMIT_SECONDS = 64_000_000, 20
"""After so much text or time, what is written is on the disk, and in the journal."""


@dataclasses.dataclass
class State:
    """How far the files are, at the end of a unit."""

    n_items: int = 0
    offset: int = 0
    """Bytes of the next item's answer that are written."""
    prompt: int = 0
    """Tokens before the next item's answer, if it is begun."""
    n_tokens: int = 0
    n_bytes: int = 0
    """Bytes of the answers of whole items."""
    prompt_tokens: int = 0
    """Tokens before the answers of whole items."""
    max_id: int = 0
    file_bytes: int = 0
    """Size of the file of tokens."""
    sha256: str = ""
    """Of that file."""
    rows_crc32: int = 0


class PartWriter:
    """Writes the tokens of one part into a folder, from where its journal ends."""

    def __init__(self, folder: pathlib.Path, tokenizer: Tokenizer):
        self._folder, self._tokenizer = folder, tokenizer
        self._journal = Journal(folder / JOURNAL)
        wide = tokenizer.vocab_size > 1 << 16
        self._dtype = np.dtype(np.uint32 if wide else np.uint16)
        special = tokenizer.bos_id, tokenizer.eos_id
        self._bos, self._eos = (np.array([i], np.int32) for i in special)

    def write(
        self, items: Sequence[Item], encoders: Encoders, what: str, is_shown: bool
    ) -> dict[str, Any]:
        """Writes the rest of the items; what the metadata says of the files.

        what: the work, for the progress that is shown if `is_shown`.

        Raises:
          UserError: the tokenizer makes an id beyond its vocabulary.
        """
        self._state, self._tokens, self._rows = self._begun()
        state, uncommitted, committed = self._state, 0, time.monotonic()
        todo = units(items, Place(state.n_items, state.offset))
        bar = Progress(what, len(items), done=state.n_items, is_shown=is_shown)
        with self._tokens, self._rows, bar:
            for unit, ids in _encoded(todo, encoders):
                self._append(unit, ids)
                n_bytes = sum(map(len, unit.texts))
                bar.update(unit.done, n_bytes)
                uncommitted += n_bytes
                is_late = time.monotonic() - committed > COMMIT_SECONDS
                if is_late or uncommitted >= COMMIT_BYTES:
                    self._commit()
                    uncommitted, committed = 0, time.monotonic()
            self._commit()
        return self._meta()

    def _begun(self) -> tuple[State, ChecksumWriter, BinaryIO]:
        """What the journal says, and the files, which end there."""
        tokens, rows = self._folder / TOKENS, self._folder / ROWS
        try:
            state = State(**(self._journal.last() or {}))
            size = state.n_items * ROW.itemsize
            with open(rows, "ab") as file:
                file.truncate(size)
            if _crc32(rows) == state.rows_crc32:
                writer = ChecksumWriter(tokens, size=state.file_bytes)
                if not state.file_bytes or writer.sha256.hexdigest() == state.sha256:
                    return state, writer, open(rows, "ab")
        except (OSError, TypeError):
            pass
        print(f"{self._folder} is damaged; it is written anew", file=for_messages())
        return State(), ChecksumWriter(tokens), open(rows, "wb")

    def _append(self, unit: Unit, ids: list[np.ndarray]) -> None:
        """Writes one unit, with the ids of each of its texts."""
        state, remaining = self._state, iter(ids)
        parts: list[np.ndarray] = []
        rows = []
        for share in unit.shares:
            if not share.is_begun:
                prompt = [self._bos, *(next(remaining) for _ in range(share.n_prompt))]
                state.prompt = sum(map(len, prompt))
                state.n_tokens += state.prompt
                parts += prompt
            answer = [next(remaining) for _ in range(share.n_answer)]
            state.n_tokens += sum(map(len, answer))
            parts += answer
            if share.hash is not None:
                parts.append(self._eos)
                state.n_tokens += 1
                rows.append((state.n_tokens, state.prompt, share.size, share.hash))
                state.n_bytes += share.size
                state.prompt_tokens += state.prompt
        flat = np.concatenate(parts)
        state.max_id = max(state.max_id, int(flat.max()))
        if state.max_id >= self._tokenizer.vocab_size:
            raise UserError(
                f"The tokenizer made id {state.max_id}, but it says that it has only "
                f"{self._tokenizer.vocab_size}; repair its vocab_size."
            )
        self._tokens.write(flat.astype(self._dtype).tobytes())
        raw = np.array(rows, ROW).tobytes()
        self._rows.write(raw)
        state.rows_crc32 = zlib.crc32(raw, state.rows_crc32)
        state.n_items, state.offset = unit.stop

    def _commit(self) -> None:
        """Brings what is written to the disk, then says so in the journal."""
        state = self._state
        state.file_bytes = self._tokens.sync()
        state.sha256 = self._tokens.sha256.hexdigest()
        self._rows.flush()
        os.fsync(self._rows.fileno())
        self._journal.add(dataclasses.asdict(state))

    def _meta(self) -> dict[str, Any]:
        state = self._state
        with ChecksumWriter(self._folder / ITEMS) as items:
            # As np.save writes it, in blocks.
            shape = {
                "descr": "<i8",
                "fortran_order": False,
                "shape": (3, state.n_items),
            }
            np.lib.format.write_array_header_1_0(items, shape)
            for name in ("end", "prompt", "size"):
                for block in rows_of(self._folder):
                    items.write(block[name].tobytes())
        return {
            "dtype": self._dtype.name,
            "items": state.n_items,
            "tokens": state.n_tokens,
            "bytes": state.n_bytes,
            "prompt_tokens": state.prompt_tokens,
            "max_id": state.max_id,
            "sha256": state.sha256,
            "tokenizer": self._tokenizer.fingerprint,
            "files": {
                TOKENS: self._tokens.facts,
                ITEMS: items.facts,
            },
        }


def rows_of(folder: pathlib.Path) -> Iterator[np.ndarray]:
    """The rows of all items of a part, in blocks of type ROW."""
    with open(folder / ROWS, "rb") as file:
        while block := file.read(BLOCK_ROWS * ROW.itemsize):
            yield np.frombuffer(block, ROW)


def remove_scaffold(folder: pathlib.Path) -> None:
    """Removes what stands beside the token files until all of them are whole."""
    for name in (ROWS, JOURNAL):
        (folder / name).unlink(missing_ok=True)


def _encoded(
    todo: Iterator[Unit], encoders: Encoders
) -> Iterator[tuple[Unit, list[np.ndarray]]]:
    """The units in order with their ids; only so many that all cores have work wait."""
    waiting = deque()
    for unit in todo:
        waiting.append((unit, encoders.submit(unit.texts)))
        while len(waiting) > encoders.n_ahead:
            unit, ids = waiting.popleft()
            yield unit, ids.result()
    while waiting:
        unit, ids = waiting.popleft()
        yield unit, ids.result()


def _crc32(path: pathlib.Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK_ROWS * ROW.itemsize):
            crc = zlib.crc32(block, crc)
    return crc
