"""The loader: batches on the devices, for each step or for one evaluation."""

import bisect
import functools
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from jaxpar.data.order import Skipped, orders
from jaxpar.data.read_ahead import Place, read_ahead
from jaxpar.data.row_checks import fault_of_row, fault_of_rows
from jaxpar.data.windows import Window, Windows
from jaxpar.errors import DataWentBad
from jaxpar.partition.layout import Placed

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
    skipped: Skipped = (),
    vocab_size: int | None = None,
    give_up: Callable[[], bool] | None = None,
) -> Generator[dict[str, jax.Array]]:
    """The batches of step `start` and of all later steps: fields [B, T].

    Each process reads only the rows of its own devices, some steps in advance, in
    threads (jaxpar.data.read_ahead), which may call `make_row` at the same time.
    skipped: windows that are in no batch from a step on, as `order` takes them.
    vocab_size: the model's, to refuse other token ids; None checks none. give_up: where
    it turns true while a batch is awaited, the batches end.

    Raises:
      DataWentBad: a row could not be read, its fields have different lengths, or an id
        is not in the vocabulary; names step, row and window.
    """
    sharding = placed.sharding(("batch", "seq"))
    rows = _rows_of_this_process(sharding, batch_size)

    ids_of = orders(seed, batch_size, len(windows), skipped)

    def read(step: int, place: Place) -> Row:
        ids = ids_of(step)
        wanted = [(i, int(ids[i])) for i in rows]
        return _batch(windows, make_row, wanted, step, vocab_size, place)

    # Threads use only NumPy: one inside JAX at exit could abort the process.
    read_rows = read_ahead(read, itertools.count(start), give_up)
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
        return self._placed_globally(self._read(k, Place()))

    def __iter__(self) -> Iterator[dict[str, jax.Array]]:
        read = read_ahead(self._read, range(len(self)), self._give_up)
        return map(self._placed_globally, read)

    def _read(self, k: int, place: Place) -> Row:
        first, n = k * self._batch_size, len(self._windows)
        # Rows that fill the last batch up are made of window 0.
        wanted = [(i, first + i if first + i < n else 0) for i in self._rows]
        made = _batch(self._windows, self._make_row, wanted, k, self._vocab_size, place)
        is_real = np.array(self._rows) + first < n
        if not is_real.all():
            made["weights"][~is_real] = 0
        return made

    def _placed_globally(self, fields: Row) -> dict[str, jax.Array]:
        return _global(fields, self._rows, self._batch_size, self._placed)

    @functools.cached_property
    def _rows(self) -> list[int]:
        sharding = self._placed.sharding(("batch", "seq"))
        return _rows_of_this_process(sharding, self._batch_size)


eval_batches = EvalBatches


def _batch(
    windows: Windows,
    make_row: MakeRow,
    wanted: Iterable[tuple[int, int]],
    step: int,
    vocab_size: int | None,
    place: Place,
) -> Row:
    """The fields of a batch, made of rows that are given with their windows."""
    rows = []
    for i, window in wanted:
        place.begin("row", i, f"(window {window})")
        rows.append(_row(windows, make_row, step, i, window))
    return _stacked(rows, wanted, step, vocab_size)


def _row(windows: Windows, make_row: MakeRow, step: int, i: int, window: int) -> Row:
    try:
        return make_row(windows[window])
    except Exception as error:  # An objective of the user's own raises anything.
        raise DataWentBad(
            f"Row {i} of batch {step} (window {window}) could not be made: "
            f"{type(error).__name__}: {error}"
        ) from error


def _rows_of_this_process(
    sharding: jax.sharding.NamedSharding, batch_size: int
) -> list[int]:
    """The rows of the global batch that this process's devices hold, in order."""
    # A length that every split of the other axis divides; its slices are not used.
    shape = (batch_size, sharding.mesh.size)
    slices = sharding.addressable_devices_indices_map(shape).values()
    rows = (range(batch_size)[index[0]] for index in slices if index is not None)
    return sorted(set(itertools.chain.from_iterable(rows)))


def _stacked(
    rows: list[Row],
    wanted: Iterable[tuple[int, int]],
    step: int,
    vocab_size: int | None,
) -> Row:
    """The rows of one batch as one array for each field.

    Raises:
      DataWentBad: something is wrong with one of them.
    """
    form = _form(rows[0])
    is_alike = form is not None and all(_form(row) == form for row in rows)
    if is_alike and not fault_of_row(rows[0], None):
        n, names = len(rows), rows[0]
        shapes = {name: (n, *rows[0][name].shape) for name in names}
        together = {name: np.concatenate([row[name] for row in rows]) for name in names}
        batch = {name: together[name].reshape(shapes[name]) for name in names}
        # Ids are checked together; only where one is wrong, row by row.
        if not fault_of_row(batch, vocab_size):
            return batch
    for (i, window), row in zip(wanted, rows, strict=True):
        if fault := fault_of_row(row, vocab_size):
            raise DataWentBad(f"Row {i} of batch {step} (window {window}): {fault}.")
    if found := fault_of_rows(rows):
        k, fault = found
        raise DataWentBad(f"Row {[*wanted][k][0]} of batch {step}: {fault}.")
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _form(row: Row) -> tuple[Any, ...] | None:
    """Names, shapes and types of a row's fields; None where they are no arrays."""
    try:
        return tuple([(name, v.shape, v.dtype) for name, v in row.items()])
    except AttributeError:
        return None


def _global(
    fields: Row, rows: list[int], batch_size: int, placed: Placed
) -> dict[str, jax.Array]:
    """Global arrays, of which this process has `rows`; tokens in the layout's order."""
    sharding = placed.sharding(("batch", "seq"))

    @functools.cache
    def in_layout(length: int) -> np.ndarray | None:
        numbers = placed.layout.token_numbers(length)
        return None if (numbers == np.arange(length)).all() else numbers

    def array(values: np.ndarray) -> jax.Array:
        numbers = in_layout(values.shape[1])

        def piece(index: Any) -> np.ndarray:
            # The slices of rows and of tokens that one device holds.
            first, stop, _ = index[0].indices(batch_size)
            start = bisect.bisect_left(rows, first)
            mine = values[start : start + stop - first]
            return mine[:, index[1] if numbers is None else numbers[index[1]]]

        shape = (batch_size, *values.shape[1:])
        return jax.make_array_from_callback(shape, sharding, piece)

    return {name: array(values) for name, values in fields.items()}
