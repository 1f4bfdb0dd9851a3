"""A process that hangs is ended, shows where, and is never ended by mistake.

pytest -m "slow or not slow" tests/guard/test_watchdog.py
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxpar.guard import watchdog
from jaxpar.guard.limits import Limits
from jaxpar.guard.phases import PHASES, Phases
from jaxpar.guard.supervisor import Quiet, Slot, is_stopped
from jaxpar.guard.watchdog import Watchdog

SHORT, PATIENCE = 0.7, 0.7  # Seconds.
BEGIN = f"""
import ctypes, os, sys, threading, time
from jaxpar.guard import phases, watchdog
from jaxpar.guard.limits import Limits
from jaxpar.guard.watchdog import Watchdog

def watched(**limits):
    Watchdog(Limits(**limits), patience={PATIENCE})

def hang_here():
    time.sleep(60)

C = ctypes.PyDLL(None)  # Its functions keep the interpreter's lock.

def lock_twice():
    lock = ctypes.create_string_buffer(64)
    C.pthread_mutex_init(lock, None)
    C.pthread_mutex_lock(lock)
    C.pthread_mutex_lock(lock)
"""


@contextlib.contextmanager
def started(code: str):
    """A process that runs BEGIN and this code."""
    child = subprocess.Popen(
        [sys.executable, "-c", BEGIN + code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONUNBUFFERED": "",
        },
    )
    with child:
        try:
            yield child
        finally:
            child.kill()


def ran(code: str) -> subprocess.CompletedProcess[str]:
    """The exit status of such a process, and what it has printed."""
    with started(code) as child:
        out, err = child.communicate(timeout=60)
    return subprocess.CompletedProcess([], child.returncode, out, err)


def test_a_hanging_step_ends_with_42_and_the_stacks_of_all_threads():
    ended = ran(f"""
watched(compute={SHORT})
threading.Thread(target=lambda: time.sleep(60), name="other").start()
print("not yet flushed", end="")
with phases.doing("compute"):
    hang_here()
""")
    assert ended.returncode == 42
    first = ended.stderr.strip().splitlines()[0]
    assert first.startswith("jaxpar: watchdog: no progress for 1 s in the phase comp")
    assert "the same command resumes" in first
    assert "in hang_here" in ended.stderr and "in <lambda>" in ended.stderr
    assert ended.stdout == "not yet flushed"


@pytest.mark.slow
@pytest.mark.parametrize("phase", PHASES)
def test_a_hang_in_each_phase_is_named(phase):
    ended = ran(f"""
watched({phase}={SHORT})
with phases.doing("{phase}"):
    hang_here()
""")
    assert ended.returncode == 42 and f"in the phase {phase} (" in ended.stderr


# What a signal does not interrupt, and what it does.
@pytest.mark.parametrize("call", ["lock_twice()", "C.sleep(60); lock_twice()"])
def test_a_held_interpreter_lock_ends_with_stacks_and_sigabrt(call):
    ended = ran(f"""
def hang():
    {call}

watched(compute={SHORT})
with phases.doing("compute"):
    hang()
""")
    assert ended.returncode == -signal.SIGABRT
    assert "C code holds the interpreter's lock" in ended.stderr
    assert "in hang" in ended.stderr


@pytest.mark.slow
def test_a_process_that_survives_sigabrt_is_killed():
    ended = ran(f"""
import signal
watched(compute={SHORT})
signal.signal(signal.SIGABRT, signal.SIG_IGN)
with phases.doing("compute"):
    lock_twice()
""")
    assert ended.returncode == -signal.SIGKILL
    assert "SIGABRT did not end process" in ended.stderr


@pytest.mark.slow
def test_code_that_gives_the_lock_back_in_time_goes_on():
    ended = ran(f"""
watched(compute={SHORT})
with phases.doing("compute"):
    C.sleep(60)  # The signal for the stacks ends it.
    phases.made_progress()
with phases.doing("prepare"):
    time.sleep(1.5)
print("done")
""")
    assert (ended.returncode, ended.stdout) == (0, "done\n")
    assert "runs again, and goes on" in ended.stderr


@pytest.mark.slow
def test_what_is_long_but_makes_progress_is_left_alone():
    ended = ran("""
watched(compute=1, evaluate=9)
for _ in range(3):
    with phases.doing("compute"):
        time.sleep(0.6)
        phases.made_progress()
        time.sleep(0.6)
with phases.doing("evaluate"):
    C.sleep(3)
print("done")
""")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.slow
def test_a_stopped_process_is_left_alone():
    code = f"""
watched(compute={SHORT})
with phases.doing("compute"):
    print("here", flush=True)
    time.sleep(0.3)
"""
    with started(code) as child:
        assert child.stdout is not None and child.stdout.readline() == "here\n"
        child.send_signal(signal.SIGSTOP)
        time.sleep(2 * (SHORT + PATIENCE))
        assert is_stopped(child.pid) and not is_stopped(os.getpid())
        child.send_signal(signal.SIGCONT)
        assert child.wait(10) == 0


@pytest.mark.slow
def test_a_debuggers_prompt_is_left_alone():
    ended = ran(f"""
import pdb
read, write = os.pipe()
threading.Timer({SHORT + PATIENCE + 1.5}, os.write, (write, b"c\\n")).start()
watched(compute={SHORT})
with phases.doing("compute"):
    pdb.Pdb(stdin=os.fdopen(read), stdout=sys.stdout).set_trace()
    print("done")
""")
    assert ended.returncode == 0 and "done" in ended.stdout


def supervisors_of(pid: int) -> list[int]:
    """The children of a process that run the supervisor."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as stat, open(f"/proc/{name}/cmdline") as c:
                ours = int(stat.read().rpartition(")")[2].split()[1]) == pid
                ours &= "supervisor.py" in c.read()
        except OSError:
            continue
        found += [int(name)] * ours
    return found


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
@pytest.mark.parametrize("forked", [False, True])
def test_the_child_ends_with_a_parent_that_is_killed(forked):
    fork = "os.fork() or time.sleep(3)" if forked else ""
    code = f"""
watched()
{fork}
print(os.getpid(), flush=True)
time.sleep(20)
"""
    with started(code) as child:
        assert child.stdout is not None
        assert int(child.stdout.readline()) == child.pid
        (supervisor,) = supervisors_of(child.pid)
        # As a terminal or a launcher sends them to the whole group.
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(supervisor, number)
        time.sleep(0.3)
        assert supervisors_of(child.pid) == [supervisor]
        child.kill()
        child.wait()
        deadline = time.monotonic() + 20
        while is_alive(supervisor) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_alive(supervisor)


def is_alive(pid: int) -> bool:
    """Whether a process runs that may be no child of this one."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_closed_watchdog_leaves_nothing():
    record = Phases()
    follower = record.follower
    watch = Watchdog(Limits(start=0.01), record=record)
    watch.close()
    assert record.follower == follower
    assert watch._child.returncode == 0 and not watch._thread.is_alive()
    time.sleep(0.1)


def test_stacks_can_be_asked_for_by_a_signal():
    ended = ran("""
watched()
os.kill(os.getpid(), watchdog.STACKS_SIGNAL)
print("done")
""")
    assert (ended.returncode, ended.stdout) == (0, "done\n")
    assert "<module>" in ended.stderr


def test_neither_off_nor_a_prompt_is_watched(monkeypatch):
    started = []
    monkeypatch.setattr(watchdog, "Watchdog", started.append)
    with watchdog.watching(None):
        pass
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with watchdog.watching(Limits()):
        pass
    monkeypatch.delattr(sys, "ps1")
    monkeypatch.setitem(sys.modules, "pydevd", sys)
    with watchdog.watching(Limits()):
        pass
    assert not started


@pytest.mark.slow
def test_a_compilation_outside_its_phase_has_its_limit():
    ended = ran(f"""
compiler = {{"__name__": "jax._src.compiler", "time": time}}
exec("def compile(): time.sleep(3)", compiler)
watched(compute={SHORT}, compile=30)
with phases.doing("compute"):
    compiler["compile"]()
print("done")
""")
    assert (ended.returncode, ended.stdout) == (0, "done\n")


class Clock:
    time = 0.0

    def __call__(self):
        return self.time


@pytest.fixture
def record():
    return Phases(Clock())


def test_a_run_of_slow_steps_and_rare_fetches_is_never_beyond_its_limit(record):
    """As jaxpar.train.loop: what is begun returns at once, and a fetch waits."""
    clock, watch = record._clock, Watchdog(Limits(), record=record)
    try:
        for step in range(1, 301):
            with record.doing("data"):
                clock.time += 0.01
            with record.doing("compile" if step == 1 else "compute"):
                clock.time += 0.01
                if step % 100 == 0 or step == 3:
                    n = 3 if step == 3 else 97 if step == 100 else 100
                    assert n * 70 < watch._shared[Slot.LIMIT]
                    clock.time += n * 70
                    record.made_progress()
                    with record.doing("evaluate"):
                        clock.time += 3000
                    assert watch._shared[Slot.LIMIT] < 20 * 100 * 71
    finally:
        watch.close()


def test_time_in_which_nobody_ran_does_not_count(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    numbers = memoryview(bytearray(24)).cast("d")
    numbers[Slot.LIMIT] = 5
    quiet = Quiet(numbers)
    clock.time = 1_000  # The machine slept.
    assert not quiet.look() and quiet.seconds == 1
    for _ in range(4):
        clock.time += 1
        assert not quiet.look()
        clock.time += 1
        quiet.look(stopped=True)
    clock.time += 0.5
    assert quiet.look()
    numbers[Slot.CHANGES] += 1
    assert not quiet.look()


@pytest.mark.slow
def test_it_costs_next_to_nothing():
    """Processor time of thread and child, and the time of one step's changes."""
    ended = ran("""
watched()
before = time.process_time(), os.times()
time.sleep(5)
print(time.process_time() - before[0])
begun = time.perf_counter()
for _ in range(10_000):
    with phases.doing("data"):
        pass
    with phases.doing("compute"):
        phases.made_progress()
print((time.perf_counter() - begun) / 10_000)
""")
    in_five_seconds, of_a_step = map(float, ended.stdout.split())
    assert in_five_seconds < 0.05 and of_a_step < 200e-6
