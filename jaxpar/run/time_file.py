"""Where the time of a run went, kept in time.json and in the receipt.

time.json has the newest session, and is written every few seconds, so that little is
missing after a kill. The receipt gets a session's time when it ends; that of a killed
one when the next begins.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

from jaxpar.errors import UserError, one_line
from jaxpar.guard import time_account
from jaxpar.guard.sealed_json import read_json, write_json
from jaxpar.guard.time_account import Account, SessionTime
from jaxpar.guard.time_recorder import EVERY_SECONDS, TimeRecorder
from jaxpar.metrics.metrics_file import written_after
from jaxpar.partition import cluster
from jaxpar.run.receipt import Receipt
from jaxpar.tables import for_messages

NAME = "time.json"


@contextlib.contextmanager
def kept_in(recorder: TimeRecorder, receipt: Receipt, metrics: Path) -> Iterator[None]:
    """A block whose time is kept beside the receipt; its session stands in it.

    metrics: the run's metrics.jsonl, with the rows of a session that was killed.
    Only process 0 writes. Where it cannot, it says so once, and training goes on.
    """
    if not cluster.is_first():
        yield
        return
    failed, end = threading.Event(), threading.Event()
    with _only_warning(failed):
        recorder.earlier = _take_over(receipt, metrics)
    number = len(receipt.sessions()) - 1

    def write_often() -> None:
        while True:
            with _only_warning(failed):
                write(receipt, number, recorder.session())
            if end.wait(EVERY_SECONDS):
                return

    writer = threading.Thread(target=write_often, name="time.json", daemon=True)
    writer.start()
    try:
        yield
        recorder.end_leg()
    finally:
        end.set()
        writer.join()
        with _only_warning(failed):
            write(receipt, number, recorder.session())
            receipt.keep_time(number, dataclasses.asdict(recorder.session()))


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
    return time_account.account([times[number] for number in sorted(times)])


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
                newest = time_account.extended(newest, step, seconds)
            receipt.keep_time(number, dataclasses.asdict(newest))
    except FileNotFoundError:
        pass
    except UserError as error:
        print(one_line(error), file=for_messages())
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
        return int(value["session"]), time_account.session_from_json(value)
    except time_account.MALFORMED as error:
        raise UserError(
            f"{path} is damaged: it holds no session ({one_line(error)}). {remedy}"
        ) from error


@contextlib.contextmanager
def _only_warning(failed: threading.Event) -> Iterator[None]:
    """A block whose failure is no reason to stop training; said the first time."""
    try:
        yield
    except (OSError, UserError) as error:
        if not failed.is_set():
            print(
                f"The run's time is not recorded ({one_line(error)}); training "
                "goes on.",
                file=for_messages(),
            )
        failed.set()
