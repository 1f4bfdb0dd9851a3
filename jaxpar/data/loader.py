"""The loader: batches on the devices, for each step or for one evaluation."""

import functools
import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxpar.data.order import Skipped, order
from jaxpar.data.row_checks import fault_of_row, fault_of_rows
from jaxpar.data.windows import Window, Windows
from jaxpar.errors import DataWentBad
from jaxpar.partition.layout import Placed

READ_AHEAD = 2
"""Batches that are read before they are asked for."""
WAIT_SECONDS = 0.2
"""Between two questions whether to give up the wait for a batch."""
Row = dict[str, np.ndarray]
Ready = Row | BaseException | None
"""What was read, or why not; None after the last."""
MakeRow = Callable[[Window], Row]


def batches(
    windows: Windows,
    make_row: MakeRow,
    *,
    batch_size: int,
    seed: int,
    placed: Placed,
    start: int = 0,
    skipped: Skipped = (),
    vocab_size: int | None = None,
    give_up: Callable[[], bool] | None = None,
) -> Generator[dict[str, jax.Array]]:
    """The batches of step `start` and of all later steps: fields [B, T].

    Each process reads only the rows of its own devices, READ_AHEAD steps in advance.
    skipped: windows that are in no batch from a step on, as `order` takes them.
    vocab_size: the model's, to refuse other token ids; None checks none. give_up: where
    it turns true while a batch is awaited, the batches end.

    Raises:
      DataWentBad: a row could not be read, its fields have different lengths, or an id
        is not in the vocabulary; names step, row and window.
    """
    sharding = placed.sharding(("batch", "seq"))
    rows = _rows_of_this_process(sharding, batch_size)

    def read(step: int) -> Row:
        ids = order(seed, step, batch_size, len(windows), skipped)
        made = [_row(windows, make_row, step, i, ids[i], vocab_size) for i in rows]
        return _stacked(made, rows, step)

    # The thread uses only NumPy: one inside JAX at exit could abort the process.
    read_rows = _read_ahead(read, itertools.count(start), give_up)
    return (_global(fields, rows, batch_size, placed) for fields in read_rows)


class EvalBatches:
    """Batches [B, T] with each window once, in order; the settings are as of `batches`.

    Rows that pad the last batch have weight 0.
    """

    def __init__(
        self,
        windows: Windows,
        make_row: MakeRow,
        *,
        batch_size: int,
        placed: Placed,
        vocab_size: int | None = None,
        give_up: Callable[[], bool] | None = None,
    ):
        self._windows, self._make_row = windows, make_row
        self._vocab_size, self._give_up = vocab_size, give_up
        self._batch_size = batch_size
        self._placed = placed

    def __len__(self) -> int:
        return -(-len(self._windows) // self._batch_size)

    def __getitem__(self, k: int) -> dict[str, jax.Array]:
        if not 0 <= k < len(self):
            raise IndexError(f"Batch {k} of {len(self)}.")
        return self._placed_globally(self._read(k))

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        read = _read_ahead(self._read, range(len(self)), self._give_up)
        return map(self._placed_globally, read)

    def _read(self, k: int) -> Row:
        return _stacked([self._row(k, i) for i in self._rows], self._rows, k)

    def _placed_globally(self, fields: Row) -> dict[str, jax.Array]:
        return _global(fields, self._rows, self._batch_size, self._placed)

    @functools.cached_property
    def _rows(self) -> list[int]:
        sharding = self._placed.sharding(("batch", "seq"))
        return _rows_of_this_process(sharding, self._batch_size)

    def _row(self, k: int, i: int) -> Row:
        window = k * self._batch_size + i
        is_real = window < len(self._windows)
        window = window if is_real else 0
        row = _row(self._windows, self._make_row, k, i, window, self._vocab_size)
        if is_real:
            return row
        return {**row, "weights": np.zeros_like(row["weights"])}


eval_batches = EvalBatches


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


def _read_ahead(
    read: Callable[[int], Row],
    numbers: Iterable[int],
    give_up: Callable[[], bool] | None,
) -> Iterator[Row]:
    """read(i) for each number, in a thread that ends with this iterator."""
    ready: queue.Queue[Ready] = queue.Queue(READ_AHEAD)
    stop = threading.Event()
    thread = threading.Thread(
        target=_fill, args=(read, numbers, ready, stop), name="jaxpar-read-ahead"
    )
    thread.daemon = True
    thread.start()
    try:
        while True:
            result = _await(ready, give_up)
            if result is None:
                return
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stop.set()


def _await(ready: queue.Queue[Ready], give_up: Callable[[], bool] | None) -> Ready:
    """The next of the queue; None where it was given up."""
    if give_up is None:
        return ready.get()
    while True:
        try:
            return ready.get(timeout=WAIT_SECONDS)
        except queue.Empty:
            if give_up():
                return None


def _fill(
    read: Callable[[int], Row],
    numbers: Iterable[int],
    ready: queue.Queue[Ready],
    stop: threading.Event,
) -> None:
    """Queues what is read, up to an error or until `stop` is set; then None."""
    results: Iterator[Ready] = map(functools.partial(_read_or_error, read), numbers)
    for result in itertools.chain(results, [None]):
        while not stop.is_set():
            try:
                ready.put(result, timeout=0.1)
                break
            except queue.Full:
                continue
        if stop.is_set() or isinstance(result, BaseException):
            return


def _read_or_error(read: Callable[[int], Row], number: int) -> Row | BaseException:
    try:
        return read(number)
    except BaseException as error:  # It is raised where the batch is awaited.
        return error
