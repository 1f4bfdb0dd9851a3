"""A fine-tune accounts for every parameter, on both sides."""

import jax.numpy as jnp
import pytest

from jaxpar.checkpoint.transfer import adopt
from jaxpar.errors import UserError


def test_what_only_the_source_has_can_be_left_out_by_name():
    ours, theirs = {"a": jnp.zeros(1)}, {"a": jnp.ones(1), "head": jnp.ones(1)}
    with pytest.raises(UserError, match=r"unused here: \['head'\]"):
        adopt(ours, theirs)
    adopted = adopt(ours, theirs, keep_fresh=("head",))
    assert adopted == {"a": theirs["a"]}


def test_another_type_does_not_fit():
    with pytest.raises(UserError, match="misfitting.*float32 here.*bfloat16 there"):
        adopt({"a": jnp.zeros(1)}, {"a": jnp.zeros(1, jnp.bfloat16)})


def test_a_parameter_that_fits_may_stay_fresh():
    ours, theirs = {"a": jnp.zeros(1)}, {"a": jnp.ones(1)}
    assert adopt(ours, theirs, keep_fresh=("a",)) == ours
