"""`jaxpar verify`: its answers, and what it says of a bad request."""

import json
from pathlib import Path

import pytest

from jaxpar.cli import main

OWN = str(Path(__file__).parents[1] / "own_model.py")


def test_the_answer_is_one_object_or_a_table(capsys):
    assert main(["verify", OWN, "--full", "--layout", "data=2,tensor=2", "--json"]) == 0
    out = capsys.readouterr().out
    said = json.loads(out)
    assert out.count("\n") == 1
    assert set(said) == {"passed", "layout", "leaves", "first"}
    assert said["passed"] and said["first"] is None
    assert said["layout"] == "data=2,tensor=2"
    assert all(set(leaf) == {"path", "kind", "error"} for leaf in said["leaves"])
    assert {leaf["path"] for leaf in said["leaves"] if leaf["kind"] == "gradient"} == {
        "embedding", "w_up", "w_down", "w_out"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("data=3", "not divisible by 3"),
        ("tensor=16", "nearest legal size is"),
        ("sideways=2", "unknown mesh axis 'sideways'"),
        ("data=8,tensor=2", "needs 16 devices; 8 are visible"),
    ],
)
def test_a_bad_request_is_one_line_and_status_2(layout, said, capsys):
    assert main(["verify", OWN, "--layout", layout]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in complaint
