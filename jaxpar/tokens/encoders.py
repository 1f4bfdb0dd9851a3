"""Processes that turn text into token ids, each with a copy of the tokenizer."""

import concurrent.futures
import contextlib
import multiprocessing.connection
import os
import pathlib
import queue
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol, Self

import numpy as np

from jaxpar.errors import JaxparError, UserError, one_line

ALONE_BYTES = 32_000_000
"""So much text is encoded by this process itself: others take a second to start."""
GOOD, REFUSED = b"good", b"refused"
Pipe = multiprocessing.connection.Connection


class Tokenizer(Protocol):
    """What is needed of a jaxpar.data.tokenizer.Tokenizer."""

    fingerprint: str

    @property
    def vocab_size(self) -> int: ...
    @property
    def bos_id(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    def encode_many(self, texts: Sequence[bytes], /) -> list[np.ndarray]: ...
    def save(self, directory: pathlib.Path, /) -> None: ...


def n_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not on every system.
        return os.cpu_count() or 1


class Encoders:
    """Encodes texts in the order in which they come, on several cores.

    Used as a context. The ids are the same with any number of processes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        folder: pathlib.Path,
        program: str | None,
        *,
        cores: int = 0,
    ):
        """folder: where a copy of the tokenizer is written; cores: 0 for all.

        program: the module that loads the copy and calls `serve`; None where the
        tokenizer is used by this process alone.
        """
        self.tokenizer, self._folder = tokenizer, folder
        self._cores = cores or n_cores()
        self._program = program if self._cores > 1 else None
        self._n_bytes = 0
        self._stack = contextlib.ExitStack()
        self._idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        self._threads: concurrent.futures.Executor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    @property
    def n_ahead(self) -> int:
        """How many calls of `submit` should wait for their results at a time."""
        return 2 * self._cores if self._threads else 0

    def submit(self, texts: Sequence[bytes]) -> "Future[list[np.ndarray]]":
        """The ids (int32) of each text, as Tokenizer.encode_many gives them.

        Raises:
          UserError: in the result: a text is not UTF-8.
          ChildProcessError: in the result: a process that encodes has ended.
        """
        if self._program and not self._threads and self._n_bytes > ALONE_BYTES:
            self._start(self._program)
        if self._threads:
            return self._threads.submit(self._encode, texts)
        self._n_bytes += sum(map(len, texts))
        done: Future[list[np.ndarray]] = Future()
        try:
            done.set_result(self.tokenizer.encode_many(texts))
        except JaxparError as error:
            done.set_exception(error)
        return done

    def _start(self, program: str) -> None:
        self.tokenizer.save(self._folder)
        for _ in range(self._cores):
            self._idle.put(self._stack.enter_context(_Process(program, self._folder)))
        threads = concurrent.futures.ThreadPoolExecutor(self._cores)
        self._stack.callback(threads.shutdown, cancel_futures=True)
        self._threads = threads

    def _encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        process = self._idle.get()
        try:
            return process.encode(texts)
        finally:
            self._idle.put(process)


class _Process:
    """One process that encodes; a context, at whose end the process ends."""

    def __init__(self, program: str, folder: pathlib.Path):
        # Started anew, not forked: JAX's threads may hold locks.
        self._pipe, theirs = multiprocessing.connection.Pipe()
        path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", program, str(number), str(folder)],
                stdin=subprocess.DEVNULL,
                pass_fds=[number],
                # One core for each process.
                env={**os.environ, **path, "RAYON_NUM_THREADS": "1"},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self._pipe.close()
        self._process.wait()

    def encode(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """The ids (int32) of each text."""
        try:
            _send(self._pipe, [np.frombuffer(text, np.uint8) for text in texts])
            if self._pipe.recv_bytes() != GOOD:
                raise UserError(self._pipe.recv_bytes().decode())
            return _received(self._pipe, np.int32)
        except (EOFError, OSError) as error:
            self._process.kill()
            raise ChildProcessError(
                f"A process that tokenises has ended (status {self._process.wait()}): "
                "was there too little memory?"
            ) from error


def _send(pipe: Pipe, arrays: Sequence[np.ndarray]) -> None:
    pipe.send_bytes(np.array([len(each) for each in arrays], np.int64).tobytes())
    pipe.send_bytes(b"".join(each.tobytes() for each in arrays))


def _received(pipe: Pipe, dtype: type) -> list[np.ndarray]:
    ends = np.cumsum(np.frombuffer(pipe.recv_bytes(), np.int64))
    return np.split(np.frombuffer(pipe.recv_bytes(), dtype), ends)[:-1]


def serve(number: int, tokenizer: Tokenizer) -> None:
    """Answers with ids until the other end of a pipe, with this number, is closed."""
    with contextlib.suppress(EOFError, OSError), Pipe(number) as pipe:
        while True:
            texts = [each.tobytes() for each in _received(pipe, np.uint8)]
            try:
                ids = tokenizer.encode_many(texts)
            except Exception as error:  # Raised again by the process that asked.
                pipe.send_bytes(REFUSED)
                pipe.send_bytes(one_line(error).encode())
                continue
            pipe.send_bytes(GOOD)
            _send(pipe, ids)
