"""What is read ahead comes in order, whatever takes long, hangs or raises.

pytest tests/data/test_read_ahead.py
"""

import itertools
import math
import threading
import time
import types

import pytest

from jaxpar.data import read_ahead as module
from jaxpar.data.read_ahead import read_ahead


def threads():
    return sum(each.name == module.NAME for each in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    deadline = time.monotonic() + 20
    while threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not threads()


@pytest.fixture
def eager(monkeypatch):
    """A thread is added as soon as anything was awaited."""
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.0)


def slowly(seconds):
    def read(number, place):
        time.sleep(seconds(number))
        return number

    return read


@pytest.mark.usefixtures("eager")
def test_several_threads_read_in_order_what_waits_for_long():
    most, found, underway, at_once = 0, [], set(), []
    # The later a number of eight, the faster it is read.
    wait = slowly(lambda number: 0.02 * (1 + (8 - number) % 8))

    def read(number, place):
        underway.add(number)
        at_once.append(len(underway))
        result = wait(number, place)
        underway.remove(number)
        return result

    for number in read_ahead(read, range(80)):
        found.append(number)
        most = max(most, threads())
    assert found == [*range(80)]
    assert 2 < most <= module.MOST_READERS
    assert sum(at_once) / len(at_once) > 2


@pytest.mark.usefixtures("eager")
def test_one_thread_reads_what_is_computed(monkeypatch):
    # As if the processor were never taken away, whatever else runs.
    clock = types.SimpleNamespace(
        monotonic=time.monotonic, thread_time=time.monotonic, sleep=time.sleep
    )
    monkeypatch.setattr(module, "time", clock)
    most = [threads() for _ in read_ahead(slowly(lambda number: 0.005), range(30))]
    assert len(most) == 30 and max(most) == 1


@pytest.mark.usefixtures("eager")
def test_an_error_is_raised_in_its_turn_and_ends_all():
    def read(number, place):
        time.sleep(0.01)
        if number == 25:
            raise OSError("disk gone")
        return number

    found = []
    with pytest.raises(OSError, match="disk gone"):
        for number in read_ahead(read, itertools.count()):
            found.append(number)
    assert found == [*range(25)]


@pytest.mark.usefixtures("eager")
def test_no_more_is_read_than_is_soon_asked_for():
    begun = []

    def read(number, place):
        begun.append(number)
        time.sleep(0.01)
        return number

    numbers = read_ahead(read, itertools.count())
    for number in itertools.islice(numbers, 40):
        assert len(begun) <= number + 1 + module.READ_AHEAD + module.MOST_READERS
    numbers.close()


def test_what_hangs_is_named_again_and_again(monkeypatch, capsys):
    monkeypatch.setattr(module, "SAY_SECONDS", 0.1)
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.01)
    released = threading.Event()

    def read(number, place):
        place.begin("row", 3, "(window 4711)")
        if number == 2:
            released.wait(20)
        return number

    threading.Timer(0.6, released.set).start()
    began = time.monotonic()
    assert [*read_ahead(read, range(4))] == [0, 1, 2, 3]
    doublings = math.log2((time.monotonic() - began) / 0.1)
    lines = capsys.readouterr().err.splitlines()
    what = (
        "Batch 2 has been awaited for 0 s: row 3 (window 4711) has been read for 0 s."
    )
    assert lines[0] == what and 2 <= len(lines) <= 1 + doublings
    assert all(line.startswith("Batch 2 has been awaited for ") for line in lines)


def test_a_wait_that_is_given_up_ends_what_is_read():
    released = threading.Event()

    def read(number, place):
        if number == 2:
            released.wait(20)
        return number

    numbers = read_ahead(read, itertools.count(), lambda: True)
    found = [*numbers]
    released.set()
    assert found in ([], [0], [0, 1])
