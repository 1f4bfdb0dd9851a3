"""A signal is noticed at once, whatever the main thread does, and is never lost.

pytest tests/guard/test_stopping.py
"""

import signal
import subprocess
import sys
import textwrap

import pytest

from jaxpar.guard import stopping
from jaxpar.guard.stopping import StopRequest, Unsaved, for_command, for_loop

# What a command does: the main thread is in a call that no Python handler ends.
COMMAND = """
    import sys, time
    from jaxpar.guard.stopping import Unsaved, for_command
    with for_command() as request:
        request.grace = 0.5
        request.unsaved = Unsaved.{unsaved}
        print("ready", flush=True)
        {work}
    sys.exit(7)
"""
STUCK = "import ctypes; [ctypes.CDLL(None).sleep(1) for _ in range(100)]"
SHORT = "time.sleep(0.3)"


def command(unsaved: str, work: str, *signals: signal.Signals) -> tuple[int, str]:
    """The exit status of a command that gets signals, and what it says."""
    code = textwrap.dedent(COMMAND).format(unsaved=unsaved, work=work)
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout and child.stderr
    try:
        assert child.stdout.readline() == "ready\n"
        said = ""
        for number in signals:
            child.send_signal(number)
            # Until the first is noticed, a second one of its kind is the same one.
            said += child.stderr.readline() + child.stderr.readline()
        said += child.communicate(timeout=20)[1]
    finally:
        child.kill()
    return child.returncode, said


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
@pytest.mark.parametrize("work", [STUCK, "time.sleep(100)", "while True: pass"])
def test_with_nothing_to_save_a_command_ends_at_once(number, status, work):
    found, said = command("NOTHING", work, number)
    assert found == status
    assert f"{number.name}: stopping; there is nothing to save" in said


def test_what_comes_next_is_said_at_once_and_a_second_signal_ends_it():
    found, said = command("STEPS", "time.sleep(100)", signal.SIGTERM, signal.SIGINT)
    assert found == 130
    assert "stopped at once; what was saved before is intact" in said


@pytest.mark.parametrize("unsaved", ["STEPS", "END"])
def test_unsaved_steps_are_given_time_to_be_saved(unsaved):
    found, said = command(unsaved, SHORT, signal.SIGTERM)
    assert found == 7
    assert "again to stop now" in said


def test_the_time_to_save_has_an_end():
    found, said = command("STEPS", STUCK, signal.SIGTERM)
    assert found == 143
    assert "stopping after this step, then saving; again to stop now" in said


def test_a_command_leaves_signals_as_it_found_them():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with for_command(leave=lambda status: None):
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert stopping.current() is None


def test_a_loop_in_a_command_has_its_request():
    with for_command(leave=lambda status: None) as request:
        with for_loop() as inner:
            assert inner is request
        assert stopping.current() is request


def test_the_first_signal_is_the_one_that_is_reported():
    request = StopRequest()
    request.unsaved = Unsaved.STEPS
    request.ask("SIGTERM")
    request.ask("SIGINT")
    assert request.signal == "SIGTERM" and request.reached()
