"""Every token is a target once, and windows know their documents."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxpar.data import windows
from jaxpar.data.task import causal
from jaxpar.data.windows import Rows, TokenFile

PAD = 999


def token_file(lengths, prompts=None) -> TokenFile:
    """Items of these lengths, begin and end included; tokens are 1, 2, 3, ..."""
    ends = np.cumsum(lengths).astype(np.int64)
    prompts = np.ones_like(ends) if prompts is None else np.array(prompts)
    tokens = np.arange(1, ends[-1] + 1, dtype=np.uint16)
    return TokenFile(tokens, ends, prompts, np.array(lengths) - 2, PAD, None)


@given(st.lists(st.integers(2, 30), min_size=1, max_size=12), st.integers(1, 17))
def test_every_token_but_the_first_of_a_document_is_scored_once(lengths, seq_len):
    corpus = token_file(lengths)
    rows = [causal(window) for window in windows.all_windows(corpus, seq_len)]
    scored = np.concatenate([row["targets"][row["weights"] > 0] for row in rows])
    firsts = set(corpus.tokens[[0, *corpus.ends[:-1]]].tolist())
    assert scored.tolist() == [t for t in corpus.tokens.tolist() if t not in firsts]


@given(st.lists(st.integers(2, 30), min_size=1, max_size=12), st.integers(1, 17))
def test_the_count_of_scored_tokens_is_the_sum_of_weights(lengths, seq_len):
    for found in (
        windows.all_windows(token_file(lengths), seq_len),
        windows.full_windows(token_file(lengths), seq_len),
    ):
        total = sum(causal(window)["weights"].sum() for window in found)
        assert found.n_tokens == total


class Watched:
    """Numbers that note how many of them were read at a time."""

    def __init__(self, numbers):
        self.numbers, self.most = numbers, 0

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, where):
        found = self.numbers[where]
        self.most = max(self.most, len(found))
        return found


@pytest.mark.parametrize("stride", [1, 2, 7, 512])
def test_items_are_looked_up_a_few_at_a_time_and_are_the_same(monkeypatch, stride):
    monkeypatch.setattr(windows, "STRIDE", stride)
    random = np.random.default_rng(0)
    lengths = random.integers(2, 9, 5_000)
    corpus = token_file(lengths, random.integers(1, lengths))
    watched = {n: Watched(getattr(corpus, n)) for n in ("ends", "prompts", "sizes")}
    sums = int(corpus.prompts.sum()), int(corpus.sizes.sum())
    stored = dataclasses.replace(corpus, **watched, totals=sums)
    for make in (windows.full_windows, windows.all_windows):
        found, expected = make(stored, 40), make(corpus, 40)
        assert len(found) == len(expected)
        assert (found.n_tokens, found.n_bytes) == (expected.n_tokens, expected.n_bytes)
        for i in [*random.permutation(len(found))[:200], 0, len(found) - 1]:
            item_of = np.repeat(np.arange(len(lengths)), lengths)
            places = np.arange(40 * i, min(40 * i + 41, len(item_of)))
            item, n = item_of[places], len(places)
            in_item = places - (corpus.ends - lengths)[item]
            window = found[i]
            assert (window.tokens[:n] == corpus.tokens[places]).all()
            assert (window.segments[:n] == item - item[0] + 1).all()
            assert (window.positions[:n] == np.minimum(in_item, np.arange(n))).all()
            assert (window.weights[:n] == (in_item >= corpus.prompts[item])).all()
    assert max(each.most for each in watched.values()) <= stride + 25


def test_rows_are_the_items_that_fit_in_their_order(monkeypatch):
    monkeypatch.setattr(windows, "ITEMS_AT_A_TIME", 7)
    random = np.random.default_rng(0)
    lengths = random.integers(2, 20, 100)
    prompts = random.integers(1, lengths)
    rows = Rows(token_file(lengths, prompts), 9)
    fits = np.flatnonzero(lengths - prompts < 10)
    starts = np.cumsum(lengths) - lengths
    assert 50 < len(fits) == len(rows) < 100 and rows.n_left_out == 100 - len(fits)
    assert [row.tokens[0] for row in rows] == (starts[fits] + 1).tolist()
    assert rows.n_tokens == sum(causal(row)["weights"].sum() for row in rows)
    assert rows.n_bytes == (lengths[fits] - 2).sum()


def test_positions_restart_with_each_document_and_each_window():
    first, second = windows.all_windows(token_file([4, 5]), 6)
    assert first.positions.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert first.segments.tolist() == [1, 1, 1, 1, 2, 2, 2]
    assert second.positions.tolist() == [0, 1, 2, 0, 0, 0, 0]


def test_the_last_window_is_filled_up_with_weight_zero():
    *_, last = windows.all_windows(token_file([4, 5]), 6)
    assert last.tokens.tolist() == [7, 8, 9, PAD, PAD, PAD, PAD]
    assert last.segments.tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert causal(last)["weights"].tolist() == [1, 1, 0, 0, 0, 0]


def test_a_target_in_another_document_weighs_nothing():
    (window,) = windows.full_windows(token_file([3, 4]), 6)
    row = causal(window)
    assert row["weights"].tolist() == [1, 1, 0, 1, 1, 1]
    assert {name: field.dtype.name for name, field in row.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "positions": "int32",
        "segments": "int32",
        "weights": "float32",
    }


def test_only_answers_are_scored():
    (window,) = Rows(token_file([6], prompts=[3]), 8)
    assert window.tokens.tolist() == [1, 2, 3, 4, 5, 6, PAD, PAD, PAD]
    row = causal(window)
    assert row["targets"][row["weights"] > 0].tolist() == [4, 5, 6]


def test_a_long_prompt_loses_its_middle_and_no_answer():
    rows = Rows(token_file([10], prompts=[7]), 6)
    assert rows[0].tokens.tolist() == [1, 2, 6, 7, 8, 9, 10]
    assert causal(rows[0])["weights"].tolist() == [0, 0, 0, 1, 1, 1]
    assert (rows.n_cut, rows.n_left_out, rows.n_tokens) == (1, 0, 3)


def test_an_answer_that_does_not_fit_is_left_out_and_counted():
    rows = Rows(token_file([10, 4], prompts=[1, 2]), 6)
    assert (len(rows), rows.n_left_out) == (1, 1)
    assert rows[0].tokens[:4].tolist() == [11, 12, 13, 14]
    assert rows.n_bytes == 2


def test_reading_after_the_last_window_is_an_index_error():
    found = windows.all_windows(token_file([4]), 2)
    with pytest.raises(IndexError, match=f"{len(found)}"):
        found[len(found)]
