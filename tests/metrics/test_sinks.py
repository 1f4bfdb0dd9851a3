"""Metrics can be read back, even those of a run that was killed."""

import io
import json
import struct

import numpy as np
import pytest

from jaxpar.errors import UserError
from jaxpar.metrics.sinks import JsonlSink, Progress, TensorBoardSink

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
        "compiling",
        "step 2/5: loss 2.500, 2.0k tok/s, 0:06 left",
        "step 4/5: loss 2.500, 2.0k tok/s, 0:02 left",
        "step 4: heldout 1.250 nats/token",
        "step 5/5: loss 2.500, 2.0k tok/s, 0:00 left",
    ]


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
