"""`jaxpar verify`: its output, and its errors for bad arguments."""

import json
from pathlib import Path

import pytest

from jaxpar.cli import main

OWN = str(Path(__file__).parents[1] / "outside" / "own_model.py")


def test_json_output_is_one_object_of_the_documented_form(capsys):
    assert main(["verify", OWN, "--full", "--layout", "data=2,tensor=2", "--json"]) == 0
    out = capsys.readouterr().out
    proof = json.loads(out)
    assert out.count("\n") == 1
    assert set(proof) == {"passed", "layout", "leaves", "first"}
    assert proof["passed"] and proof["first"] is None
    assert proof["layout"] == "data=2,tensor=2"
    assert all(set(leaf) == {"path", "kind", "error"} for leaf in proof["leaves"])
    assert {leaf["path"] for leaf in proof["leaves"] if leaf["kind"] == "gradient"} == {
        "embedding", "w_up", "w_down", "w_out"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("data=3", "not divisible by 3"),
        ("tensor=16", "nearest legal size is"),
        ("sideways=2", "unknown mesh axis 'sideways'"),
        ("data=8,tensor=2", "needs 16 devices; 8 are visible"),
    ],
)
def test_a_bad_request_is_one_line_and_status_2(layout, message, capsys):
    assert main(["verify", OWN, "--layout", layout]) == 2
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in last_line
