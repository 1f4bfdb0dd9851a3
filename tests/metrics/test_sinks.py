"""Metrics can be read back, even those of a run that was killed."""

import io
import json
import struct

import numpy as np
import pytest

from jaxpar.errors import JaxparError, UserError
from jaxpar.metrics.rows import OptionalSink, Rows
from jaxpar.metrics.sinks import JsonlSink, Progress, TensorBoardSink
from tests.small_disks import files_of_at_most

ROW = {"step": 1, "loss": 2.5, "tokens": 4096.0, "seconds": 2.0, "mfu": None}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_row_is_written_at_once_as_a_line(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    sink = JsonlSink(path)
    for step in range(3):
        sink.write({**ROW, "step": step})
        assert lines(path)[-1] == {**ROW, "step": step}
    sink.close()


def test_what_json_lacks_becomes_null_at_any_depth(tmp_path):
    path = tmp_path / "metrics.jsonl"
    row = {
        "loss": float("nan"), "a": [np.float32("inf"), np.int64(3)],
        "b": {"c": -np.inf},
        "d": np.float64(0.5), "e": True, "f": "NaN",
    }  # fmt: skip
    JsonlSink(path).write(row)
    expected = {"loss": None, "a": [None, 3], "b": {"c": None}, "d": 0.5}
    assert lines(path) == [{**expected, "e": True, "f": "NaN"}]


def test_an_array_is_refused_with_advice(tmp_path):
    with pytest.raises(UserError, match="fetch"):
        JsonlSink(tmp_path / "metrics.jsonl").write({"loss": np.zeros(2)})


@pytest.mark.parametrize(
    ("torn", "kept"), [('{"step": 2, "lo', 1), ('{"step": 2}', 2), ("", 1)]
)
def test_a_resumed_run_appends_after_the_last_whole_line(tmp_path, torn, kept):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + torn)
    JsonlSink(path).write({"step": 3})
    found = [line["step"] for line in lines(path)]
    assert found == [1, 2, 3][:kept] + [3]


def events(folder):
    """(step, tag, value) of each scalar in a folder of TensorBoard files."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
            data = data[12 + size + 4 :]
    return found


def test_tensorboard_gets_the_numbers_under_their_splits(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write(ROW)
    sink.write({"step": 2, "split": "heldout", "nats_per_token": 1.5})
    sink.close()
    found = events(tmp_path)
    assert (1, "train/loss", 2.5) in found
    assert (2, "heldout/nats_per_token", 1.5) in found
    assert not [tag for _, tag, _ in found if "mfu" in tag or "step" in tag]


def test_tensorboard_gets_the_texts_of_an_event(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write({"step": 3, "split": "sample", "text": "a text", "length": 6})
    sink.write({**ROW, "step": 4, "first_nonfinite": "the loss"})
    sink.close()
    tags = {tag for _, tag, _ in events(tmp_path)}
    assert {"sample/text/text_summary", "sample/length", "train/loss"} <= tags
    assert not [tag for tag in tags if "first_nonfinite" in tag]
    (path,) = tmp_path.glob("events*")
    assert b"a text" in path.read_bytes()


def test_a_log_file_shows_an_objective_and_what_an_event_writes():
    file = io.StringIO()
    progress = Progress(5, file=file)
    score = {"split": "heldout", "nats_per_token": 1.25, "nats_per_byte": 1.0}
    own = {"objective": 2.5, "objective_name": "Smoothed"}
    progress.write({"step": 4, **score, **own})
    progress.write({"step": 4, "split": "sample", "text": "def f():", "length": 3})
    assert file.getvalue().splitlines()[1:] == [
        "step 4: heldout 1.250 nats/token, Smoothed 2.500",
        "compiling the step",
        "step 4: sample text: def f():, length: 3",
    ]


def test_a_log_file_gets_one_plain_line_for_each_log():
    file = io.StringIO()
    progress = Progress(5, every=2, file=file)
    for step in range(1, 6):
        progress.write({**ROW, "step": step})
        if step == 4:
            heldout = {"split": "heldout", "nats_per_token": 1.25}
            progress.write({"step": 4, **heldout, "nats_per_byte": 1.0})
    progress.close()
    assert file.getvalue().splitlines() == [
        "evaluating step 0",
        "step 2/5: loss 2.500, 2.0k tok/s, 0:06 left",
        "step 4/5: loss 2.500, 2.0k tok/s, 0:02 left",
        "step 4: heldout 1.250 nats/token",
        "step 5/5: loss 2.500, 2.0k tok/s, 0:00 left",
    ]


def test_what_takes_the_time_before_the_first_step_is_said():
    file = io.StringIO()
    progress = Progress(5, file=file)
    score = {"split": "heldout", "nats_per_token": 1.25, "nats_per_byte": 1.0}
    progress.write({"step": 0, **score})
    progress.write({**ROW, "step": 1})
    progress.write({"step": 1, **score})
    progress.close()
    assert [line.partition(":")[0] for line in file.getvalue().splitlines()] == [
        "evaluating step 0", "step 0", "compiling the step", "step 1/5", "step 1",
    ]  # fmt: skip


def test_a_terminal_says_compiling_until_the_first_step():
    file = Terminal()
    progress = Progress(5, start=2, file=file)
    first = file.getvalue()
    assert "compiling" in first and "2/5" in first
    progress.write({**ROW, "step": 3})
    progress.write({**ROW, "step": 5})
    progress.close()
    last = file.getvalue().split("\r")[-1]
    assert "training" in last and "5/5" in last and "loss 2.500" in last
    assert "2.0k tok/s" in last and "0:00 left" in last


def test_a_loss_that_is_not_finite_is_shown_as_it_is():
    file = io.StringIO()
    Progress(2, file=file).write({"step": 1, "loss": float("nan")})
    assert file.getvalue().splitlines()[1] == "step 1/2: loss nan"


def test_tensorboard_reads_a_resumed_run_of_the_same_second(tmp_path):
    for step in (1, 1, 2):
        sink = TensorBoardSink(tmp_path)
        sink.write({**ROW, "step": step})
        sink.close()
    assert len(list(tmp_path.iterdir())) == 3
    found = [step for step, tag, _ in events(tmp_path) if tag == "train/loss"]
    assert found == [1, 1, 2]


@pytest.mark.parametrize("kind", [JsonlSink, TensorBoardSink])
def test_of_a_row_that_does_not_fit_nothing_is_written(tmp_path, kind):
    sink = kind(tmp_path / "out")
    sink.write(ROW)
    path = tmp_path / "out"
    (file,) = path.iterdir() if path.is_dir() else (path,)
    before = file.read_bytes()
    # The system writes the part that fits, and says so; the rest is an error.
    with files_of_at_most(len(before) + 20), pytest.raises(OSError, match="too large"):
        sink.write({**ROW, "step": 2})
    assert file.read_bytes() == before
    sink.write({**ROW, "step": 3})
    sink.close()
    assert file.read_bytes().startswith(before) and len(file.read_bytes()) > len(before)


def rows_of(tmp_path, *others):
    asked = []
    rows = Rows(
        JsonlSink(tmp_path / "metrics.jsonl"),
        others,
        ask_to_stop=lambda: asked.append(True),
    )
    return rows, asked


class Failing:
    """A sink that fails at its second row, and when it is closed."""

    def __init__(self, error):
        self.error, self.rows = error, []

    def write(self, row):
        self.rows.append(row)
        if len(self.rows) == 2:
            raise self.error

    def close(self):
        raise self.error


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), ValueError("I/O operation on closed file")]
)
def test_a_sink_that_fails_is_off_after_one_warning(tmp_path, capsys, error):
    sink = Failing(error)
    rows, asked = rows_of(tmp_path, OptionalSink(sink, "TensorBoard"))
    for step in range(1, 5):
        rows.write({**ROW, "step": step})
    rows.close()
    rows.require_written()
    assert [row["step"] for row in sink.rows] == [1, 2] and asked == []
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("TensorBoard is off from now on (") and str(error) in line


def test_tensorboard_on_a_full_disk_costs_no_row(tmp_path, capsys):
    rows, _ = rows_of(tmp_path, OptionalSink(TensorBoardSink(tmp_path / "t"), "TB"))
    rows.write(ROW)
    # More than tensorboardX's queue holds, which blocked once its thread had died.
    with files_of_at_most(0):
        sink = OptionalSink(TensorBoardSink(tmp_path / "u"), "TB")
        for step in range(50):
            sink.write({**ROW, "step": step})
        sink.close()
    rows.close()
    assert capsys.readouterr().err.count("off from now on") == 1


def test_a_warning_that_cannot_be_printed_costs_no_row(tmp_path, monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr("sys.stderr", closed)
    rows, _ = rows_of(
        tmp_path, OptionalSink(Failing(OSError("gone")), "the progress bar")
    )
    for step in (1, 2, 3):
        rows.write({**ROW, "step": step})
    rows.close()
    assert len(lines(tmp_path / "metrics.jsonl")) == 3


def test_a_lost_row_asks_once_to_stop_and_leaves_no_gap(tmp_path):
    rows, asked = rows_of(tmp_path)
    rows.write({**ROW, "step": 1})
    rows.require_written()
    with files_of_at_most(20):
        rows.write({**ROW, "step": 2})
    rows.write({**ROW, "step": 3})
    assert asked == [True]
    assert [row["step"] for row in lines(tmp_path / "metrics.jsonl")] == [1]
    with pytest.raises(JaxparError, match=r"jsonl .*File too large.*from step 2 on"):
        rows.require_written()
    rows.close()
