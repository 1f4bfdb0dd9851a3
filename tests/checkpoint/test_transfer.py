"""A fine-tune accounts for every parameter, on both sides."""

import jax.numpy as jnp
import pytest

from jaxpar.checkpoint.transfer import adopt
from jaxpar.errors import UserError


def test_what_only_the_source_has_can_be_left_behind_by_name():
    ours, theirs = {"a": jnp.zeros(1)}, {"a": jnp.ones(1), "head": jnp.ones(1)}
    with pytest.raises(UserError, match=r"unused here: \['head'\]"):
        adopt(ours, theirs)
    taken = adopt(ours, theirs, keep_fresh=("head",))
    assert taken == {"a": theirs["a"]}


def test_another_type_is_a_misfit():
    with pytest.raises(UserError, match="misfitting.*float32 here.*bfloat16 there"):
        adopt({"a": jnp.zeros(1)}, {"a": jnp.zeros(1, jnp.bfloat16)})


def test_what_fits_may_stay_fresh_all_the_same():
    ours, theirs = {"a": jnp.zeros(1)}, {"a": jnp.ones(1)}
    assert adopt(ours, theirs, keep_fresh=("a",)) == ours
