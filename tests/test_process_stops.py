"""What stops one of several processes stops them all, with nothing lost.

pytest -m slow tests/test_process_stops.py
"""

import signal
import time

import pytest

from jaxpar.run.directory import RunDir
from tests.processes import (
    ENDLESS,
    SCRIPT,
    exit_statuses,
    losses,
    output_of,
    rows_in,
    started,
    wait_for_output,
    wait_for_steps,
)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_at_the_same_saved_step(tmp_path, number):
    run, words = tmp_path / "run", ("pretrain", SCRIPT, "--no-compile-cache", *ENDLESS)
    with started(tmp_path, 2, *words, "--run-dir", str(run)) as children:
        wait_for_steps(children, tmp_path, run)
        children[1].send_signal(number)
        assert exit_statuses(children) == [75, 75]
    assert "stopped on request" in output_of(tmp_path, 2, 0)
    step = max(losses(run))
    assert RunDir(run).checkpoints().steps() == [step]
    for i in range(2):
        rows = rows_in(tmp_path / f"rows2.{i}")
        assert step - 1 in rows and step not in rows


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(tmp_path, victim):
    run, words = tmp_path / "run", ("pretrain", SCRIPT, "--no-compile-cache", *ENDLESS)
    words = (*words, "--run-dir", str(run))
    with started(tmp_path, 2, *words, LEAVE_SECONDS="5") as children:
        wait_for_steps(children, tmp_path, run)
        children[victim].kill()
        status = exit_statuses(children)[1 - victim]
    # Depends on which notices first: Gloo raises an error, JAX's coordination aborts.
    assert status in (1, -signal.SIGABRT)
    assert output_of(tmp_path, 2, 1 - victim)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_process_ends_the_other_within_the_heartbeat(tmp_path, victim):
    run, words = tmp_path / "run", ("pretrain", SCRIPT, "--no-compile-cache", *ENDLESS)
    words = (*words, "--run-dir", str(run))
    env = {"LEAVE_SECONDS": "5", "HEARTBEAT_SECONDS": "10"}
    with started(tmp_path, 2, *words, **env) as children:
        wait_for_steps(children, tmp_path, run)
        children[victim].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        assert children[1 - victim].wait(60) != 0
        assert time.monotonic() - began < 15
    assert output_of(tmp_path, 2, 1 - victim)


@pytest.mark.slow
@pytest.mark.parametrize("said", ["to train on", "parameters, "])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_signal_to_one_process_before_its_first_step_ends_both(
    tmp_path, said, victim
):
    run, words = tmp_path / "run", ("pretrain", SCRIPT, "--no-compile-cache", *ENDLESS)
    with started(tmp_path, 2, *words, "--run-dir", str(run)) as children:
        wait_for_output(children, tmp_path, said)
        children[victim].send_signal(signal.SIGTERM)
        # Where both have made a step by then, it is saved. One that only heartbeats
        # had ended would have another status.
        assert exit_statuses(children) in ([143, 143], [75, 75])
    assert "SIGTERM" in output_of(tmp_path, 2, victim)
