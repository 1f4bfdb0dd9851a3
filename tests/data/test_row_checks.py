"""A row that cannot be trained on is described before it is stacked with others."""

import re

import ml_dtypes
import numpy as np
import pytest

from jaxpar.data.row_checks import fault_of_row, fault_of_rows

IDS = np.arange(8, dtype=np.int32)
ROW = {"tokens": IDS, "targets": IDS, "weights": np.ones(8, np.float32)}


@pytest.mark.parametrize(
    "fields, fault",
    [
        ({"tokens": [[1], [2, 3]]}, "its field 'tokens' is no array: .*inhomogeneous"),
        ({"extra": [IDS, IDS[:3]]}, "its field 'extra' is no array: .*inhomogeneous"),
        ({"weights": None}, "its field 'weights' is of type NoneType; each field is"),
        ({"tokens": "text"}, "its field 'tokens' is of type str; each field is"),
        ({"tokens": ["a"] * 8}, "its field 'tokens' holds <U1, not numbers"),
        ({"extra": [b"a"] * 8}, r"its field 'extra' holds \|S1, not numbers"),
        ({"extra": [None] * 8}, "its field 'extra' holds object, not numbers"),
        ({"extra": [{}] * 8}, "its field 'extra' holds object, not numbers"),
        ({"tokens": IDS.astype(float)}, "its tokens are float64; token ids are integ"),
        ({"tokens": IDS.astype(bool)}, "its tokens are bool; token ids are integers"),
        ({"targets": IDS - 5}, "its targets have the id -5 at position 0"),
        ({"tokens": [2**70] + [1] * 7}, "its field 'tokens' holds object, not numbers"),
        ({"tokens": IDS[:5]}, "different lengths: tokens 5, targets 8, weights 8"),
        ({"extra": np.ones((5, 3))}, r"lengths: .*, extra \[5, 3\]"),
        ({"weights": 1.0}, "its field 'weights' is a single number"),
    ],
)
def test_a_field_that_cannot_be_computed_with_is_named(fields, fault):
    assert fault_of_row(ROW, 40) is None
    found = fault_of_row({**ROW, **fields}, 40)
    assert found is not None
    assert re.search(fault, found), found


@pytest.mark.parametrize("row", [None, [], {}, IDS, (IDS, IDS)])
def test_what_is_no_row_is_named_by_its_type(row):
    assert f"returned a {type(row).__name__}, not a d" in (fault_of_row(row, 40) or "")


def test_a_row_that_says_not_what_is_scored_is_refused():
    found = fault_of_row({"tokens": IDS, "targets": IDS}, 40)
    assert found == (
        "it has no field 'weights', which says what is scored; there are "
        "['tokens', 'targets']"
    )


def test_every_number_that_a_device_computes_with_may_be_in_a_field():
    for dtype in (
        bool,
        np.uint8,
        np.float16,
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e5m2,
    ):
        assert fault_of_row({**ROW, "extra": IDS.astype(dtype)}, 40) is None


@pytest.mark.parametrize(
    "changed, fault",
    [
        ({"extra": IDS}, "fields are .*, extra 8, and before tokens 8, targets 8, w"),
        ({"tokens": IDS[:4]}, "its fields are tokens 4, .*, and before tokens 8,"),
        ({"weights": np.ones((8, 2))}, r"weights \[8, 2\], and before .* weights 8"),
    ],
)
def test_rows_of_a_batch_have_the_same_fields(changed, fault):
    i, found = fault_of_rows([ROW, ROW, {**ROW, **changed}]) or (None, "")
    assert i == 2 and re.search(fault, found), found
    assert fault_of_rows([ROW, ROW]) is None


def test_a_field_that_a_later_row_lacks_is_seen():
    less = {name: values for name, values in ROW.items() if name != "targets"}
    i, found = fault_of_rows([ROW, less]) or (None, "")
    assert i == 1 and "are tokens 8, weights 8, and before tokens 8, targets" in found
