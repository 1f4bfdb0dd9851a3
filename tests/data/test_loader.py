"""Batches hold the same rows on every mesh, and end with their iterator."""

import itertools
import threading
import time

import jax
import numpy as np
import pytest

from jaxpar.data import read_ahead, windows
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
    deadline = time.monotonic() + 20
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


def test_a_row_that_hangs_is_named_with_its_window(monkeypatch, capsys):
    monkeypatch.setattr(read_ahead, "SAY_SECONDS", 0.1)
    monkeypatch.setattr(read_ahead, "WAIT_SECONDS", 0.01)

    def slow(window):
        if window.tokens[0] == 2 * SEQ_LEN:
            time.sleep(0.5)
        return causal(window)

    where = placed("data=4")
    found = batches(some_windows(4), slow, batch_size=4, seed=0, placed=where)
    next(found)
    row = order(0, 0, 4, 4).tolist().index(2)
    said = f"Batch 0 has been awaited for 0 s: row {row} (window 2) has been read for "
    assert capsys.readouterr().err.startswith(said)


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


def changed(**fields):
    """`causal`, with some fields replaced in the row of window 2."""

    def row(window):
        made = causal(window)
        if window.tokens[0] != 2 * SEQ_LEN:
            return made
        return {**made, **{name: change(made[name]) for name, change in fields.items()}}

    return row


def poked(value):
    def change(ids):
        ids = ids.copy()
        ids[3] = value
        return ids

    return change


@pytest.mark.parametrize("field", ["tokens", "targets"])
@pytest.mark.parametrize("value", [40, 2**31 - 1, -1])
def test_an_id_outside_the_vocabulary_is_refused_by_name(field, value):
    settings = {"batch_size": 4, "placed": placed("data=4"), "vocab_size": 40}
    row = changed(**{field: poked(value)})
    said = rf"window 2\): its {field} have the id {value} at position 3.* of 40"
    with pytest.raises(DataWentBad, match=rf"Row . of batch 0 \({said}"):
        next(batches(some_windows(4), row, seed=0, **settings))
    with pytest.raises(DataWentBad, match=rf"Row 2 of batch 0 \({said}"):
        eval_batches(some_windows(4), row, **settings)[0]


def test_ids_that_are_no_integers_are_refused():
    row = changed(tokens=lambda ids: ids + 0.5)
    with pytest.raises(DataWentBad, match="tokens are float64; token ids are integers"):
        next(
            batches(
                some_windows(4), row, batch_size=4, seed=0, placed=placed("data=4"),
                vocab_size=40,
            )
        )  # fmt: skip


def test_a_target_of_weight_zero_may_be_any_number():
    row = changed(targets=poked(-100), weights=poked(0))
    settings = {"batch_size": 4, "placed": placed("data=4"), "vocab_size": 40}
    assert len(list(eval_batches(some_windows(4), row, **settings))) == 1


@pytest.mark.parametrize(
    "row, fault",
    [
        (changed(targets=lambda ids: ids[1:]), r"lengths: tokens 8, targets 7, posi"),
        (
            changed(**{
                name: lambda values: values[:5]
                for name in ("tokens", "targets", "positions", "segments", "weights")
            }),
            r"its fields are tokens 5, .*, and before tokens 8, ",
        ),
        (changed(weights=lambda values: values.sum()), "'weights' is a single number"),
        (lambda window: window.tokens, "returned a ndarray, not a dictionary"),
    ],
)  # fmt: skip
def test_a_ragged_row_says_which_field_has_which_length(row, fault):
    held = eval_batches(some_windows(4), row, batch_size=4, placed=placed("data=4"))
    with pytest.raises(DataWentBad, match=rf"Row [02] of batch 0.*{fault}"):
        held[0]
