"""Steps to batches on the devices."""

import itertools
import queue
import threading
from collections.abc import Callable, Generator, Iterator

import jax
import numpy as np

from jaxpar.data.order import order
from jaxpar.data.windows import Window, Windows
from jaxpar.errors import DataWentBad
from jaxpar.partition.layout import Placed

READ_AHEAD = 2
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
) -> Generator[dict[str, jax.Array]]:
    """The batch of step `start` and all that follow, without end: fields [B, T].

    Each process reads the rows of its own devices, some steps ahead.

    Raises:
      DataWentBad: a row could not be read; names step, row and window.
    """
    sharding = placed.sharding(("batch", "seq"))
    rows = _own_rows(sharding, batch_size)

    def read(step: int) -> Row:
        ids = order(seed, step, batch_size, len(windows))
        return _stacked([_row(windows, make_row, step, i, ids[i]) for i in rows])

    # Only NumPy runs ahead: a thread inside JAX at exit could abort the process.
    ahead = _ahead(read, start)
    return (_global(fields, rows, batch_size, placed) for fields in ahead)


class EvalBatches:
    """Every window once, in order; rows that fill the last batch up weigh 0."""

    def __init__(
        self, windows: Windows, make_row: MakeRow, *, batch_size: int, placed: Placed
    ):
        self._windows, self._make_row = windows, make_row
        self._batch_size = batch_size
        self._placed = placed

    def __len__(self) -> int:
        return -(-len(self._windows) // self._batch_size)

    def __getitem__(self, k: int) -> dict[str, jax.Array]:
        if not 0 <= k < len(self):
            raise IndexError(f"Batch {k} of {len(self)}.")
        sharding = self._placed.sharding(("batch", "seq"))
        rows = _own_rows(sharding, self._batch_size)
        fields = _stacked([self._row(k, i) for i in rows])
        return _global(fields, rows, self._batch_size, self._placed)

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        return (self[k] for k in range(len(self)))

    def _row(self, k: int, i: int) -> Row:
        window = k * self._batch_size + i
        if window < len(self._windows):
            return _row(self._windows, self._make_row, k, i, window)
        row = _row(self._windows, self._make_row, k, i, 0)
        return {**row, "weights": np.zeros_like(row["weights"])}


def eval_batches(
    windows: Windows, make_row: MakeRow, *, batch_size: int, placed: Placed
) -> EvalBatches:
    """A finite list of batches [B, T] that holds each window once."""
    return EvalBatches(windows, make_row, batch_size=batch_size, placed=placed)


def _row(windows: Windows, make_row: MakeRow, step: int, i: int, window: int) -> Row:
    try:
        return make_row(windows[int(window)])
    except Exception as error:
        raise DataWentBad(
            f"Row {i} of batch {step} (window {window}) could not be made: "
            f"{type(error).__name__}: {error}"
        ) from error


def _own_rows(sharding: jax.sharding.NamedSharding, batch_size: int) -> list[int]:
    """The rows of the global batch that this process's devices hold, in order."""
    # One column: whether and how the other axis is split does not matter here.
    shape = (batch_size, sharding.mesh.size)
    places = sharding.addressable_devices_indices_map(shape).values()
    wanted = (range(batch_size)[place[0]] for place in places if place is not None)
    return sorted(set(itertools.chain.from_iterable(wanted)))


def _stacked(rows: list[Row]) -> Row:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _global(fields: Row, rows: list[int], batch_size: int, placed: Placed) -> dict:
    """Global arrays of which this process gives `rows`, in the layout's order."""
    numbers = np.array(rows)
    sharding = placed.sharding(("batch", "seq"))

    def array(values: np.ndarray) -> jax.Array:
        numbers_of = placed.layout.token_numbers(values.shape[1])

        def piece(index) -> np.ndarray:
            wanted = np.arange(batch_size)[index[0]]
            return values[np.searchsorted(numbers, wanted)][:, numbers_of[index[1]]]

        shape = (batch_size, *values.shape[1:])
        return jax.make_array_from_callback(shape, sharding, piece)

    return {name: array(values) for name, values in fields.items()}


def _ahead(read: Callable[[int], Row], start: int) -> Iterator[Row]:
    """read(start), read(start + 1), ... by a thread that ends with this iterator."""
    ready: queue.Queue = queue.Queue(READ_AHEAD)
    stop = threading.Event()
    thread = threading.Thread(
        target=_fill, args=(read, start, ready, stop), name="jaxpar-read-ahead"
    )
    thread.daemon = True
    thread.start()
    try:
        while True:
            found = ready.get()
            if isinstance(found, Exception):
                raise found
            yield found
    finally:
        stop.set()


def _fill(read, start: int, ready: queue.Queue, stop: threading.Event) -> None:
    for step in itertools.count(start):
        try:
            found = read(step)
        except Exception as error:
            found = error
        while not stop.is_set():
            try:
                ready.put(found, timeout=0.1)
                break
            except queue.Full:
                continue
        if stop.is_set() or isinstance(found, Exception):
            return
