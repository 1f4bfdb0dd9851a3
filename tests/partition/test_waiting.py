"""A process that waits for others says for whom.

pytest tests/partition/test_waiting.py
"""

import socket
import threading
import time

import pytest

from jaxpar.partition import waiting


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(waiting, "FIRST_SECONDS", 1)


@pytest.fixture
def port():
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as found:
        found.bind(("::", 0))
        return found.getsockname()[1]


def come(n, i, port):
    return waiting.Greetings(lambda: (f"localhost:{port}", n, i))


def heard_by(zero, others):
    """What process 0 says once a datagram had the time to come."""
    for _ in range(50):
        for other in others:
            other.exchange()
        zero.exchange()
        if len(zero._heard) > len(others):
            break
        time.sleep(0.02)
    return zero.whom()


def test_process_0_names_those_that_have_not_come(port):
    zero = come(5, 0, port)
    zero.exchange()
    assert zero.whom() == f"Process 0 of 5 waits for the 4 others at localhost:{port}."
    others = [come(5, 1, port), come(5, 3, port)]
    said = heard_by(zero, others)
    assert said == "Process 0 of 5 waits for process 2, 4."
    assert "waits for process 0 and all others at localhost" in others[0].whom()
    others += [come(5, 2, port), come(5, 4, port)]
    assert heard_by(zero, others) == "All 5 processes have come; JAX connects them."


def test_a_network_without_datagrams_and_a_single_process_do_no_harm(port):
    nowhere = waiting.Greetings(lambda: ("no.such.host.invalid:1", 2, 1))
    nowhere.exchange()
    assert nowhere.whom()
    unknown = waiting.Greetings(lambda: (None, 1, 0))
    unknown.exchange()
    assert unknown.whom() == ""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as taken:
        taken.bind(("::", port))
        come(2, 0, port).exchange()


def test_a_long_wait_is_said_once_and_a_short_one_not(impatient, capfd):
    arrived = threading.Event()
    with waiting.said(arrived.set, lambda: "for nobody"):
        time.sleep(0.1)
    assert not arrived.is_set()
    with waiting.said(arrived.set, lambda: "for process 1"):
        time.sleep(2.5)
    assert arrived.is_set()
    assert capfd.readouterr().err == "for process 1\n"


def test_what_fails_while_it_is_waited_does_not_end_the_wait(impatient):
    def fail():
        raise RuntimeError("no service")

    with waiting.said(fail, fail):
        time.sleep(1.2)
