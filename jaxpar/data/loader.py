"""The loader: batches on the devices, for each step or for one evaluation."""

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import numpy as np

from jaxpar.data.order import order
from jaxpar.data.row_checks import fault_of_row, fault_of_rows
from jaxpar.data.windows import Window, Windows
from jaxpar.errors import DataWentBad
from jaxpar.partition.layout import Placed

READ_AHEAD = 2
"""Batches that are read before they are asked for."""
Row = dict[str, np.ndarray]
MakeRow = Callable[[Window], Row]


def batches(
    windows: Windows,
    make_row: MakeRow,
    *,
    batch_size: int,
    seed: int,
    placed: Placed,
    start: int = 0,
    vocab_size: int | None = None,
) -> Generator[dict[str, jax.Array]]:
    """The batches of step `start` and of all later steps: fields [B, T].

    Each process reads only the rows of its own devices, READ_AHEAD steps in advance.
    vocab_size: the model's, to refuse other token ids; None checks none.

    Raises:
      DataWentBad: a row could not be read, its fields have different lengths, or an id
        is not in the vocabulary; names step, row and window.
    """
    sharding = placed.sharding(("batch", "seq"))
    rows = _rows_of_this_process(sharding, batch_size)

    def read(step: int) -> Row:
        ids = order(seed, step, batch_size, len(windows))
        made = [_row(windows, make_row, step, i, ids[i], vocab_size) for i in rows]
        return _stacked(made, rows, step)

    # The thread uses only NumPy: one inside JAX at exit could abort the process.
    read_rows = _read_ahead(read, start)
    return (_global(fields, rows, batch_size, placed) for fields in read_rows)


class EvalBatches:
    """Every window once, in order; rows that pad the last batch have weight 0."""

    def __init__(
        self,
        windows: Windows,
        make_row: MakeRow,
        *,
        batch_size: int,
        placed: Placed,
        vocab_size: int | None = None,
    ):
        self._windows, self._make_row = windows, make_row
        self._vocab_size = vocab_size
        self._batch_size = batch_size
        self._placed = placed

    def __len__(self) -> int:
        return -(-len(self._windows) // self._batch_size)

    def __getitem__(self, k: int) -> dict[str, jax.Array]:
        if not 0 <= k < len(self):
            raise IndexError(f"Batch {k} of {len(self)}.")
        sharding = self._placed.sharding(("batch", "seq"))
        rows = _rows_of_this_process(sharding, self._batch_size)
        fields = _stacked([self._row(k, i) for i in rows], rows, k)
        return _global(fields, rows, self._batch_size, self._placed)

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        return (self[k] for k in range(len(self)))

    def _row(self, k: int, i: int) -> Row:
        window = k * self._batch_size + i
        is_real = window < len(self._windows)
        window = window if is_real else 0
        row = _row(self._windows, self._make_row, k, i, window, self._vocab_size)
        if is_real:
            return row
        return {**row, "weights": np.zeros_like(row["weights"])}


def eval_batches(
    windows: Windows,
    make_row: MakeRow,
    *,
    batch_size: int,
    placed: Placed,
    vocab_size: int | None = None,
) -> EvalBatches:
    """Batches [B, T] that hold each window once; the rows are checked as above."""
    return EvalBatches(
        windows,
        make_row,
        batch_size=batch_size,
        placed=placed,
        vocab_size=vocab_size,
    )


def _row(
    windows: Windows,
    make_row: MakeRow,
    step: int,
    i: int,
    window: int,
    vocab_size: int | None,
) -> Row:
    try:
        row = make_row(windows[int(window)])
    except Exception as error:  # An objective of the user's own raises anything.
        raise DataWentBad(
            f"Row {i} of batch {step} (window {window}) could not be made: "
            f"{type(error).__name__}: {error}"
        ) from error
    if fault := fault_of_row(row, vocab_size):
        raise DataWentBad(f"Row {i} of batch {step} (window {window}): {fault}.")
    return row


def _rows_of_this_process(
    sharding: jax.sharding.NamedSharding, batch_size: int
) -> list[int]:
    """The rows of the global batch that this process's devices hold, in order."""
    # A length that every split of the other axis divides; its slices are not used.
    shape = (batch_size, sharding.mesh.size)
    slices = sharding.addressable_devices_indices_map(shape).values()
    rows = (range(batch_size)[index[0]] for index in slices if index is not None)
    return sorted(set(itertools.chain.from_iterable(rows)))


def _stacked(rows: list[Row], numbers: list[int], step: int) -> Row:
    """The rows of one batch as one array for each field; `numbers` are the rows'."""
    if found := fault_of_rows(rows):
        i, fault = found
        raise DataWentBad(f"Row {numbers[i]} of batch {step}: {fault}.")
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _global(
    fields: Row, rows: list[int], batch_size: int, placed: Placed
) -> dict[str, jax.Array]:
    """Global arrays, of which this process has `rows`; tokens in the layout's order."""
    row_numbers = np.array(rows)
    sharding = placed.sharding(("batch", "seq"))

    def array(values: np.ndarray) -> jax.Array:
        token_numbers = placed.layout.token_numbers(values.shape[1])

        def piece(index: Any) -> np.ndarray:
            # The slices of rows and of tokens that one device holds.
            wanted = np.arange(batch_size)[index[0]]
            local_rows = np.searchsorted(row_numbers, wanted)
            return values[local_rows][:, token_numbers[index[1]]]

        shape = (batch_size, *values.shape[1:])
        return jax.make_array_from_callback(shape, sharding, piece)

    return {name: array(values) for name, values in fields.items()}


def _read_ahead(read: Callable[[int], Row], start: int) -> Iterator[Row]:
    """read(start), read(start + 1), ... in a thread that ends with this iterator."""
    ready: queue.Queue[Row | Exception] = queue.Queue(READ_AHEAD)
    stop = threading.Event()
    thread = threading.Thread(
        target=_fill, args=(read, start, ready, stop), name="jaxpar-read-ahead"
    )
    thread.daemon = True
    thread.start()
    try:
        while True:
            result = ready.get()
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        stop.set()


def _fill(
    read: Callable[[int], Row],
    start: int,
    ready: queue.Queue[Row | Exception],
    stop: threading.Event,
) -> None:
    """Puts each step's rows into the queue, until an error or until `stop` is set."""
    for step in itertools.count(start):
        try:
            result = read(step)
        except Exception as error:  # It is raised where the batch is awaited.
            result = error
        while not stop.is_set():
            try:
                ready.put(result, timeout=0.1)
                break
            except queue.Full:
                continue
        if stop.is_set() or isinstance(result, Exception):
            return
