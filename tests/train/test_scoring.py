"""An evaluation reads ahead, and computes no more batches at a time than it may."""

import dataclasses
import math
import random

import jax
import numpy as np
import pytest

from jaxpar.errors import DataWentBad
from jaxpar.optim.schedule import Schedule
from jaxpar.partition.layout import Layout, Placed
from jaxpar.train.events import Evaluate
from jaxpar.train.loop import History
from jaxpar.train.scoring import IN_FLIGHT, most_in_flight, total_loss
from jaxpar.train.state import NEVER, TrainState

N = 9
LOSSES = [random.Random(i).uniform(0, 10) / 3 for i in range(N)]


@dataclasses.dataclass
class Score:
    """Stands for an array of a program that runs until it is waited for."""

    batch: int
    done: list

    def block_until_ready(self):
        if ("fetched", self.batch) not in self.done:
            self.done.append(("fetched", self.batch))
        return self

    def __array__(self, dtype=None, copy=None):
        return np.asarray(LOSSES[self.batch])


def evaluated(in_flight, batches=range(N)):
    """The sums, and in which order batches were read, started and fetched."""
    done = []

    def read():
        for batch in batches:
            done.append(("read", batch))
            yield batch

    def eval_step(params, batch):
        done.append(("started", batch))
        return {"loss": Score(batch, done), "weight": np.float32(1)}

    try:
        return total_loss(eval_step, {}, read(), in_flight=in_flight), done
    except DataWentBad as error:
        return error, done


@pytest.mark.parametrize("in_flight", [1, 2, 4, 20])
def test_so_many_batches_are_in_flight_and_the_next_one_is_read(in_flight):
    _, done = evaluated(in_flight)
    for what in ("read", "started", "fetched"):
        assert [i for kind, i in done if kind == what] == list(range(N))
    most, ahead, counts = 0, [], dict.fromkeys(("read", "started", "fetched"), 0)
    for kind, _ in done:
        counts[kind] += 1
        most = max(most, counts["started"] - counts["fetched"])
        if kind == "fetched":
            ahead.append(counts["read"] - counts["fetched"])
    assert most == min(in_flight, N)
    # A batch is awaited once the next one has been read, if there is one.
    assert ahead[: N - most] == [most] * (N - most)


@pytest.mark.parametrize("in_flight", [2, 4, 20])
def test_the_sums_are_the_same_bits_however_many_are_in_flight(in_flight):
    assert evaluated(in_flight)[0] == evaluated(1)[0]
    assert evaluated(in_flight)[0]["weight"] == N


@pytest.mark.parametrize("in_flight", [1, 4])
def test_an_error_of_reading_ends_it(in_flight):
    def broken():
        yield from range(5)
        raise DataWentBad("Row 3 of batch 5.")

    error, done = evaluated(in_flight, broken())
    assert str(error) == "Row 3 of batch 5." and ("started", 4) in done


def test_only_devices_that_are_real_compute_several():
    class OnGpus(Placed):
        platform = "gpu"

    placed = Layout.parse("data=8").on(jax.devices())
    assert most_in_flight(placed) == 1
    assert most_in_flight(OnGpus(placed.layout, placed.mesh)) == IN_FLIGHT > 1


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1.0])
def test_a_loss_that_is_not_finite_is_said_before_the_next_step(loss, capsys):
    sums = {"loss": np.float32(loss), "weight": np.float32(1)}
    schedule = Schedule(1.0, 0, 0, 9, 0.0, "linear")
    evaluate = Evaluate(
        lambda params, batch: sums,
        [0],
        [].append,
        every=1,
        schedule=schedule,
        n_bytes=8,
    )
    evaluate.run(0, TrainState(np.int32(0), {}, (), np.int32(NEVER)), History())
    said = capsys.readouterr().err
    assert said == ("" if loss == 1 else f"Step 0: the heldout loss is {loss}.\n")
