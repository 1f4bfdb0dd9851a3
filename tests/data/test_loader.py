"""Batches hold the same rows on every mesh, and end with their iterator."""

import itertools
import threading
import time

import jax
import numpy as np
import pytest

from jaxpar.data import windows
from jaxpar.data.loader import batches, eval_batches
from jaxpar.data.order import order
from jaxpar.data.task import causal
from jaxpar.data.windows import TokenFile
from jaxpar.errors import DataWentBad
from jaxpar.partition.layout import Layout

SEQ_LEN = 8


def some_windows(n: int):
    tokens = np.arange(n * SEQ_LEN + 1, dtype=np.uint16)
    one = np.array([len(tokens)]), np.array([1]), np.array([len(tokens) - 2])
    return windows.full_windows(TokenFile(tokens, *one, 0, None), SEQ_LEN)


def placed(spelling: str):
    layout = Layout.parse(spelling)
    return layout.on(jax.devices()[: layout.n_devices])


def first(n, found):
    return [jax.device_get(batch) for batch in itertools.islice(found, n)]


def readers():
    return [t for t in threading.enumerate() if t.name == "jaxpar-read-ahead"]


@pytest.mark.parametrize(
    "spelling", ["data=1", "fsdp=8", "fsdp=4,tensor=2", "tensor=4"]
)
def test_a_batch_is_the_ordered_rows_on_every_layout(spelling):
    source = some_windows(11)
    found = batches(source, causal, batch_size=8, seed=3, placed=placed(spelling))
    for step, batch in enumerate(first(3, found)):
        rows = [causal(source[int(i)]) for i in order(3, step, 8, 11)]
        for name in batch:
            np.testing.assert_array_equal(
                batch[name], np.stack([row[name] for row in rows])
            )


def test_starting_later_is_skipping():
    source, settings = some_windows(11), {"batch_size": 4, "seed": 0}
    settings["placed"] = placed("data=4")
    whole = first(5, batches(source, causal, **settings))
    late = first(2, batches(source, causal, start=3, **settings))
    for ours, theirs in zip(late, whole[3:], strict=True):
        np.testing.assert_array_equal(ours["tokens"], theirs["tokens"])


def test_the_reading_thread_ends_with_its_iterator():
    found = batches(
        some_windows(4), causal, batch_size=4, seed=0, placed=placed("data=4")
    )
    next(found)
    assert readers()
    del found
    deadline = time.monotonic() + 5
    while readers() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not readers()


def test_a_row_that_cannot_be_made_is_named_where_it_is_used():
    def broken(window):
        if window.tokens[0] == 2 * SEQ_LEN:
            raise OSError("disk gone")
        return causal(window)

    found = batches(
        some_windows(4), broken, batch_size=4, seed=0, placed=placed("data=4")
    )
    with pytest.raises(DataWentBad, match=r"batch 0 \(window 2\).*disk gone"):
        next(found)


def test_evaluation_reads_every_window_once_and_fills_up_with_weight_zero():
    source = some_windows(6)
    found = eval_batches(source, causal, batch_size=4, placed=placed("data=4"))
    assert len(found) == 2
    for _ in range(2):
        total = sum(float(batch["weights"].sum()) for batch in found)
        assert total == source.n_tokens
    last = jax.device_get(found[1])
    np.testing.assert_array_equal(last["weights"][2:], 0)
    np.testing.assert_array_equal(last["tokens"][1], source[5].tokens[:-1])
