"""Gradients are as precise as `reduce`, whatever the parameters and microbatches."""

import pytest

from experiments.bench.accumulation import worst_leaf
from jaxpar.errors import UserError
from jaxpar.partition.precision import Precision


@pytest.mark.parametrize("params", ["bfloat16", "float16"])
def test_narrow_parameters_have_gradients_in_the_type_of_reduce(params):
    # In float32 sums of 2,048 tokens are right to 1e-6; bfloat16 is off by 3e-3.
    precision = Precision(params=params)
    errors = [worst_leaf(precision, microbatches) for microbatches in (1, 64)]
    assert max(errors) < 1e-5


def test_sums_of_gradients_in_float16_are_refused():
    with pytest.raises(UserError, match="65,504"):
        Precision(reduce="float16")
