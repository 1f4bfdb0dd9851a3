"""A proof as a table and as JSON."""

import json
import math

from jaxpar.verify.proof import First, Leaf, Proof

FIRST = First("forward", "layers/attn/out", 3, {"data": 1}, "data")
LEAVES = (
    Leaf("w", "init", 0.0, 0.0),
    Leaf("b", "init", 0.0, 0.0),
    Leaf("w", "gradient", 2e-3, 1e-12),
    Leaf("b", "gradient", 1e-15, 1e-12, zero=True),
    Leaf("mu/w", "state", 3e-16, 1e-12),
    Leaf("loss", "loss", math.nan, 1e-12),
)
FAILED = Proof("data=2", "a <model>", LEAVES, first=FIRST)


def test_equal_bits_or_a_small_error_pass_and_a_nan_never_does():
    assert [leaf.passed for leaf in LEAVES] == [True, True, False, True, True, False]
    assert not Leaf("w", "init", 1e-300, 0.0).passed
    assert not Leaf("w", "gradient", math.inf, 1e-12).passed
    assert Proof("data=2", "", LEAVES[:2]).passed and not FAILED.passed


def test_json_has_the_documented_form():
    proof = json.loads(json.dumps(FAILED.to_json(), allow_nan=False))
    assert proof["leaves"][3] == {"path": "b", "kind": "zero gradient", "error": 1e-15}
    assert proof["leaves"][5]["error"] is None
    assert proof["first"] == {
        "where": "forward", "name": "layers/attn/out", "layer": 3,
        "shard": {"data": 1}, "axis": "data",
    }  # fmt: skip


def test_the_table_marks_what_differs_and_names_the_place():
    text = str(FAILED)
    row = next(line for line in text.splitlines() if line.startswith("w "))
    assert row.split() == ["w", "equal", "2.0e-03", "!", "3.0e-16"]
    assert "2 of 6 leaves of data=2 differ" in text
    assert "layers/attn/out, layer 3, on data 1" in text
    assert "zero mathematically" in text
    assert "<td>w</td>" in FAILED._repr_html_()
    assert "a &lt;model&gt;" in FAILED._repr_html_()


def test_a_derivative_has_a_row_of_its_own_and_is_no_error_of_the_layout():
    more = (Leaf("w", "gradient", 2e-15, 1e-12), Leaf("w", "derivative", 8e-8, 1e-4))
    text = str(Proof("data=2", "", LEAVES[:2] + more))
    assert "derivative w 8.0e-08" in " ".join(text.split())
    assert "derivative: a router's gradient against differences of the loss" in text
    assert text.endswith("passed: 4 leaves of data=2 are those of one device "
                         "(largest error 2.0e-15)")  # fmt: skip
