"""The time of a session, recorded while it runs, in time.json and in the receipt.

time.json has the newest session, and is written every few seconds, so that little is
missing after a kill. The receipt gets a session's time when it ends; that of a killed
one when the next begins.
"""

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxpar.errors import UserError, one_line
from jaxpar.guard import goodput, phases
from jaxpar.guard.goodput import REPEATED, STAMP, Account, Leg, Seconds, SessionTime
from jaxpar.metrics.sinks import Row
from jaxpar.partition import cluster
from jaxpar.run.metrics_file import written_after
from jaxpar.run.receipt import Receipt
from jaxpar.run.sealed_json import read_json, write_json

NAME = "time.json"
EVERY_SECONDS = 5.0


class TimeAccount:
    """The account of a run's time, to which the session that runs adds its own.

    It starts with the session: what the process did before is not counted.
    """

    def __init__(
        self,
        record: phases.Phases = phases.PROCESS,
        *,
        now: Callable[[], float] = time.time,
    ):
        """record: of this process's phases. now: the wall clock, in seconds."""
        self._record, self._now = record, now
        self._before = goodput.spent_before() if record is phases.PROCESS else {}
        self._started = now() - sum(self._seconds().values())
        self._earlier: Sequence[SessionTime] = ()
        self._to_first_step: float | None = None
        self._legs: list[Leg] = []
        self._leg_before: Seconds = {}
        self._lock, self._warned = threading.Lock(), False
        self._row_at = -EVERY_SECONDS

    @contextlib.contextmanager
    def kept_in(self, receipt: Receipt, metrics: Path) -> Iterator[None]:
        """A block whose time is kept beside the receipt; this session stands in it.

        metrics: the run's metrics.jsonl, with the rows of a session that was killed.
        Only process 0 writes. Where it cannot, it says so once, and training goes on.
        """
        if not cluster.is_first():
            yield
            return
        with self._only_warning():
            self._earlier = _take_over(receipt, metrics)
        number, end = len(receipt.sessions()) - 1, threading.Event()

        def write_often() -> None:
            while True:
                with self._only_warning():
                    write(receipt, number, self.session())
                if end.wait(EVERY_SECONDS):
                    return

        writer = threading.Thread(target=write_often, name="time.json", daemon=True)
        writer.start()
        try:
            yield
            self._end_leg()
        finally:
            end.set()
            writer.join()
            with self._only_warning():
                write(receipt, number, self.session())
                receipt.keep_time(number, dataclasses.asdict(self.session()))

    def begin_at(self, step: int) -> None:
        """The steps from this one on are done next, for the first time or again."""
        if self._legs:
            self._end_leg()
        with self._lock:
            self._leg_before = self._seconds()
            self._legs.append(Leg(step, step, {}, {}))

    def timed(self, train_step: Callable) -> Callable:
        """The training step, whose first call is waited for to know when it ended."""

        def step(state: Any, batch: Any) -> tuple[Any, Any]:
            state, metrics = train_step(state, batch)
            if self._to_first_step is None:
                jax.block_until_ready(metrics)
                self._to_first_step = sum(self._seconds().values())
            return state, metrics

        return step

    def add_to(self, row: Row, *, last: bool = False) -> Row:
        """The row of a step that is written now; every few seconds with the account.

        last: whether it is the last row of the run, which has the account anyway.
        """
        with self._lock:
            spent = self._spent_in_leg()
            self._legs[-1] = dataclasses.replace(
                self._legs[-1], step=row["step"], spent=spent
            )
        elapsed = sum(self._seconds().values())
        if not last and elapsed - self._row_at < EVERY_SECONDS:
            return row
        self._row_at = elapsed
        return {**row, **self.account().as_row()}

    def account(self) -> Account:
        """The account of all sessions up to now."""
        return goodput.account([*self._earlier, self.session()])

    def session(self) -> SessionTime:
        """What is known of this session now."""
        with self._lock:
            legs = [*self._legs]
            if legs:
                spent, last = self._spent_in_leg(), legs[-1]
                after = {p: s - last.spent.get(p, 0.0) for p, s in spent.items()}
                legs[-1] = dataclasses.replace(last, after=after)
        return SessionTime(
            _stamp(self._started),
            _stamp(self._now()),
            self._seconds(),
            self._to_first_step,
            tuple(legs),
        )

    def _seconds(self) -> dict[str, float]:
        """Seconds of this session, by phase."""
        spent = self._record.seconds()
        return {p: s - self._before.get(p, 0.0) for p, s in spent.items()}

    def _spent_in_leg(self) -> dict[str, float]:
        spent = self._seconds()
        return {p: spent[p] - self._leg_before.get(p, 0.0) for p in REPEATED}

    def _end_leg(self) -> None:
        """All that was done since the last row was needed for it, such as a save."""
        with self._lock:
            if self._legs:
                spent = self._spent_in_leg()
                self._legs[-1] = dataclasses.replace(self._legs[-1], spent=spent)

    @contextlib.contextmanager
    def _only_warning(self) -> Iterator[None]:
        """A block whose failure is no reason to stop training."""
        try:
            yield
        except (OSError, UserError) as error:
            if not self._warned:
                print(
                    f"The run's time is not recorded ({one_line(error)}); training "
                    "goes on.",
                    file=sys.stderr,
                )
            self._warned = True


def account_of(run: str | Path) -> Account:
    """Where the time of a run went, over all its sessions; also while it runs.

    Sessions of older versions, which recorded no time, are not in it.

    Raises:
      UserError: the receipt is damaged.
    """
    receipt = Receipt(Path(run) / "receipt.json")
    times = receipt.times()
    with contextlib.suppress(FileNotFoundError, UserError):
        number, newest = _read(receipt)
        if number < len(receipt.sessions()):
            times[number] = newest
    return goodput.account([times[number] for number in sorted(times)])


def write(receipt: Receipt, number: int, session: SessionTime) -> None:
    """Writes time.json beside the receipt, whose session of this number it is of."""
    content = {"session": number, **dataclasses.asdict(session)}
    write_json(receipt.path.with_name(NAME), content)


def _take_over(receipt: Receipt, metrics: Path) -> list[SessionTime]:
    """The times of earlier sessions; that of a killed one goes to the receipt."""
    for leftover in receipt.path.parent.glob(f"{NAME}.*.tmp"):
        leftover.unlink()
    try:
        number, newest = _read(receipt)
        if number < len(receipt.sessions()) - 1 and number not in receipt.times():
            if newest.legs:
                step, seconds = written_after(metrics, newest.legs[-1].step)
                newest = goodput.extended(newest, step, seconds)
            receipt.keep_time(number, dataclasses.asdict(newest))
    except FileNotFoundError:
        pass
    except UserError as error:
        print(one_line(error), file=sys.stderr)
    times = receipt.times()
    return [times[number] for number in sorted(times)]


def _read(receipt: Receipt) -> tuple[int, SessionTime]:
    """The session that time.json is of: its number in the receipt, and its time.

    Raises:
      FileNotFoundError: there is none.
      UserError: it is damaged.
    """
    path, remedy = receipt.path.with_name(NAME), "Its session's time is not counted."
    value = read_json(path, remedy=remedy)
    try:
        return int(value["session"]), goodput.session_from_json(value)
    except goodput.MALFORMED as error:
        raise UserError(
            f"{path} is damaged: it holds no session ({one_line(error)}). {remedy}"
        ) from error


def _stamp(seconds: float) -> str:
    return time.strftime(STAMP, time.localtime(seconds))
