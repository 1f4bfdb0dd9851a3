"""Where a run's time went is known after every kind of end.

pytest tests/run/test_time_file.py
"""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxpar import atomic
from jaxpar.guard.phases import Phases
from jaxpar.guard.sealed_json import write_json
from jaxpar.guard.time_account import Leg, SessionTime
from jaxpar.guard.time_recorder import TimeRecorder
from jaxpar.metrics.metrics_file import last_evaluation, read_metrics
from jaxpar.partition import cluster
from jaxpar.run import time_file
from jaxpar.run.receipt import Receipt
from jaxpar.run.time_file import NAME, account_of, kept_in

STARTED = "2026-01-01T00:00:00+0000"


class Clock:
    time = 0.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


def started(folder):
    """The receipt with one more session."""
    receipt = Receipt(folder / "receipt.json")
    write_json(receipt.path, {"sessions": [*receipt.sessions(), {"data": "same"}]})
    return receipt


def a_session(folder, clock, *, first, steps, fails=False):
    """A session of steps of 2 s each, after 3 s of starting and 5 s of compiling."""
    phases = Phases(clock)
    account = TimeRecorder(phases, now=clock)
    rows = []
    with kept_in(account, started(folder), folder / "metrics.jsonl"):
        clock.time += 3
        account.begin_at(first)

        def train_step(state, batch):
            with phases.doing("compile" if batch == first else "compute"):
                clock.time += 5 if batch == first else 2
            return state, {}

        train_step = account.timed(train_step)
        for step in range(first, first + steps):
            train_step(None, step)
            rows.append(account.add_to({"step": step + 1}))
        if fails:
            raise KeyboardInterrupt
    return rows


def test_a_session_stands_in_the_receipt_when_it_ends(tmp_path, clock):
    a_session(tmp_path, clock, first=0, steps=11)
    (session,) = Receipt(tmp_path / "receipt.json").sessions()
    assert session["data"] == "same"
    assert session["time"]["to_first_step"] == 8
    assert session["time"]["seconds"]["compute"] == 20
    assert session["time"]["legs"][0]["step"] == 11
    found = account_of(tmp_path)
    assert (found.wall, found.goodput) == (28, 20 / 28)


def test_sessions_add_up_and_lost_steps_are_counted(tmp_path, clock):
    a_session(tmp_path, clock, first=0, steps=11)
    clock.time += 100
    with pytest.raises(KeyboardInterrupt):
        a_session(tmp_path, clock, first=11, steps=21, fails=True)
    clock.time += 50
    rows = a_session(tmp_path, clock, first=22, steps=11)
    found = account_of(tmp_path)
    assert found.sessions == 3
    assert found.lost_steps == 10
    assert found.between == 150
    assert found.wall == 28 + 48 + 28
    assert found.seconds["lost"] == pytest.approx(40 * 10 / 21)
    assert found.to_first_step == (8, 8, 8)
    # The first row of the newest session has the account of all.
    assert rows[0]["lost_steps"] == 10
    assert rows[0]["time_start"] == 9
    assert "goodput" not in rows[1]


def test_what_an_orderly_end_takes_is_not_lost(tmp_path, clock):
    phases = Phases(clock)
    account = TimeRecorder(phases, now=clock)
    with kept_in(account, started(tmp_path), tmp_path / "metrics.jsonl"):
        account.begin_at(0)
        with phases.doing("compute"):
            clock.time += 8
            account.add_to({"step": 4})
        with phases.doing("save"):
            clock.time += 6
    a_session(tmp_path, clock, first=4, steps=2)
    found = account_of(tmp_path)
    assert (found.seconds["checkpoint"], found.seconds["lost"]) == (6, 0)


def test_a_row_has_the_account_every_few_seconds_and_last(tmp_path, clock):
    rows = a_session(tmp_path, clock, first=0, steps=20)
    assert [row["step"] for row in rows if "goodput" in row] == [
        1,
        4,
        7,
        10,
        13,
        16,
        19,
    ]
    account = TimeRecorder(Phases(clock), now=clock)
    account.begin_at(0)
    account.add_to({"step": 1})
    assert "goodput" in account.add_to({"step": 2}, last=True)


def test_rows_with_the_account_are_rows_of_steps(tmp_path, clock):
    rows = a_session(tmp_path, clock, first=0, steps=6)
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5, 6]
    assert last_evaluation(path, up_to=6) is None


KILLED = """
import sys, time
from pathlib import Path
from jaxpar.guard import phases
from jaxpar.guard.time_recorder import TimeRecorder
from jaxpar.run import time_file
from jaxpar.run.receipt import Receipt

time_file.EVERY_SECONDS = 0.05
account = TimeRecorder()
run = Path(sys.argv[1])
receipt, metrics = Receipt(run / "receipt.json"), run / "metrics.jsonl"
with time_file.kept_in(account, receipt, metrics):
    account.begin_at(0)
    with phases.doing("compute"):
        account.add_to({"step": 7})
        time.sleep(0.5)
        print("now", flush=True)
        time.sleep(60)
"""


def test_a_kill_loses_little_of_the_account(tmp_path, clock):
    started(tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE
    )
    assert child.stdout.readline()
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    (session,) = Receipt(tmp_path / "receipt.json").sessions()
    assert "time" not in session
    found = account_of(tmp_path)
    assert found.sessions == 1
    assert found.seconds["compute"] > 0.3
    clock.time = time.time()
    a_session(tmp_path, clock, first=5, steps=2)
    killed, _ = Receipt(tmp_path / "receipt.json").sessions()
    assert killed["time"]["legs"][0]["step"] == 7
    found = account_of(tmp_path)
    # What it did after its last step is lost as well as two of seven steps.
    assert found.lost_steps == 2
    assert found.seconds["lost"] > 0.3
    assert found.seconds["compute"] == pytest.approx(2, abs=0.3)


def test_rows_tell_what_was_done_after_the_last_record(tmp_path, clock):
    record = SessionTime(
        STARTED, "2026-01-01T00:01:00+0000",
        {"start": 40.0, "compute": 20.0}, 30.0,
        (Leg(0, 10, {"compute": 15.0}, {"compute": 5.0}),),
    )  # fmt: skip
    receipt = started(tmp_path)
    time_file.write(receipt, 0, record)
    rows = [{"step": step, "loss": 1.0, "seconds": 2.0} for step in range(1, 16)]
    rows.append({"step": 14, "split": "heldout", "seconds": 100.0})
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    a_session(tmp_path, clock, first=12, steps=1)
    killed = Receipt(receipt.path).times()[0]
    # Five steps of 2 s each; of these 10 s were 5 s recorded.
    assert killed.legs == (Leg(0, 15, {"compute": 25.0, "data": 0.0},
                               {"compute": 0.0, "data": 0.0}),)  # fmt: skip
    assert killed.seconds == {"start": 40.0, "compute": 25.0}
    found = account_of(tmp_path)
    assert found.lost_steps == 3
    assert found.seconds["lost"] == pytest.approx(5)


def test_a_full_disk_costs_the_account_and_nothing_else(
    tmp_path, clock, monkeypatch, capsys
):
    def full(path, content):
        raise OSError(28, "No space left on device")

    receipt = started(tmp_path)
    account = TimeRecorder(Phases(clock), now=clock)
    monkeypatch.setattr(time_file, "EVERY_SECONDS", 0.01)
    with monkeypatch.context() as patched:
        patched.setattr(atomic, "write_bytes", full)
        with kept_in(account, receipt, tmp_path / "metrics.jsonl"):
            time.sleep(0.1)
    assert capsys.readouterr().err.count("No space left on device") == 1
    assert receipt.sessions() == [{"data": "same"}]


@pytest.mark.parametrize(
    "content", ["", "{", '{"session": 0}', "[]", '{"session": {}}']
)
def test_a_damaged_file_loses_its_session_aloud(tmp_path, clock, content, capsys):
    started(tmp_path)
    (tmp_path / NAME).write_text(content)
    (tmp_path / f"{NAME}.17.tmp").write_text("left by a kill")
    a_session(tmp_path, clock, first=0, steps=3)
    assert f"{NAME} is damaged" in capsys.readouterr().err
    assert account_of(tmp_path).sessions == 1
    assert sorted(os.listdir(tmp_path)) == ["receipt.json", NAME]


def test_a_flipped_digit_of_the_record_is_noticed(tmp_path, clock, capsys):
    receipt = started(tmp_path)
    record = SessionTime(STARTED, STARTED, {"start": 40.0}, None)
    time_file.write(receipt, 0, record)
    assert account_of(tmp_path).wall == 40
    path = tmp_path / NAME
    path.write_text(path.read_text().replace("40.0", "41.0"))
    assert account_of(tmp_path).sessions == 0
    a_session(tmp_path, clock, first=0, steps=3)
    assert f"{NAME} is damaged" in capsys.readouterr().err


def test_a_run_of_an_older_version_has_no_account(tmp_path):
    started(tmp_path)
    assert account_of(tmp_path).sessions == 0


def test_only_the_first_process_writes(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(cluster, "is_first", lambda: False)
    a_session(tmp_path, clock, first=0, steps=2)
    assert os.listdir(tmp_path) == ["receipt.json"]
    assert account_of(tmp_path).sessions == 0


def test_going_back_begins_another_leg(tmp_path, clock):
    phases = Phases(clock)
    account = TimeRecorder(phases, now=clock)
    for first, last in ((0, 30), (20, 40)):
        account.begin_at(first)
        with phases.doing("compute"):
            clock.time += last - first
            account.add_to({"step": last})
    found = account.account()
    assert found.lost_steps == 10
    assert found.seconds["lost"] == pytest.approx(10)
    assert found.seconds["compute"] == pytest.approx(40)
