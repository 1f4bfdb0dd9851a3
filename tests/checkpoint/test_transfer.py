"""A fine-tune accounts for every parameter, on both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.checkpoint.transfer import Vocabulary, account, adopt
from jaxpar.errors import UserError
from jaxpar.partition.layout import Layout


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


def shapes(**sizes):
    return {path: jnp.zeros(shape) for path, shape in sizes.items()}


NAMES = {
    "embedding": ("vocab", "embed"),
    "head": ("embed", "vocab"),
    "positions": ("position", "embed"),
    "w": ("layers", "embed"),
}


def test_more_layers_are_refused_with_both_shapes_and_what_to_write():
    ours, theirs = shapes(w=(4, 2), norm=(2,)), shapes(w=(3, 2), norm=(2,))
    with pytest.raises(
        UserError, match=r"w \(4, 2\).* here, \(3, 2\).* there"
    ) as found:
        account(ours, theirs)
    assert "write keep_fresh=('w',)" in str(found.value)
    fresh = account(ours, theirs, keep_fresh=("w",))
    assert fresh.fresh == {"w": (4, 2)} and fresh.left_out == {"w": (3, 2)}
    assert "Stays newly initialised: w (4, 2)" in str(fresh)


def test_what_is_all_taken_is_not_worth_a_line():
    assert str(account(shapes(w=(1,)), shapes(w=(1,)))) == ""


def test_positions_do_not_grow():
    ours, theirs = shapes(positions=(8, 2)), shapes(positions=(4, 2))
    with pytest.raises(UserError, match="keep the source's max_positions"):
        account(ours, theirs, vocabulary=Vocabulary(NAMES, 5, 5))


# In the second, the new ids take the place of padding, so that every shape is the same.
@pytest.mark.parametrize("rows", [(8, 12), (12, 12)])
def test_other_ids_are_refused_unless_the_vocabulary_may_grow(rows):
    theirs, ours = (shapes(embedding=(n, 2), head=(2, n)) for n in rows)
    with pytest.raises(UserError, match=r"of 9 ids here, 7 there.*grow_vocab=9"):
        account(ours, theirs, vocabulary=Vocabulary(NAMES, 9, 7))
    with pytest.raises(UserError, match=r"of 7 ids here, 9 there.*cannot shrink"):
        account(ours, theirs, vocabulary=Vocabulary(NAMES, 7, 9, may_grow=True))
    grown = account(ours, theirs, vocabulary=Vocabulary(NAMES, 9, 7, may_grow=True))
    assert grown.grown == {"embedding": (rows[1], 2), "head": (2, rows[1])}
    assert "Grows from 7 to 9 ids" in str(grown) and grown.facts["ids"] == [7, 9]


def test_a_vocabulary_that_grows_must_have_a_parameter_to_keep():
    ours, theirs = shapes(embedding=(9, 2)), shapes(embedding=(7, 2))
    growing = Vocabulary(NAMES, 9, 7, may_grow=True)
    with pytest.raises(UserError, match="grow_vocab keeps nothing"):
        account(ours, theirs, keep_fresh=("emb*",), vocabulary=growing)
    with pytest.raises(UserError, match=r"misfitting: .*embedding \(9, 2\)"):
        account(ours, shapes(embedding=(7, 3)), vocabulary=growing)


@pytest.mark.parametrize("sizes", [(8, 12), (12, 12), (12, 10)], ids=str)
@pytest.mark.parametrize("layout", ["data=8", "fsdp=4,tensor=2"])
def test_old_rows_are_kept_and_all_others_are_fresh(sizes, layout):
    placed = Layout.parse(layout).on(jax.devices())
    theirs, ours = (
        {
            path: jax.device_put(
                sign * (1.0 + jnp.arange(n * 8).reshape(shape)),
                placed.sharding(NAMES[path], "stored"),
            )
            for path, shape in (("embedding", (n, 8)), ("head", (8, n)))
        }
        for n, sign in zip(sizes, (1, -1), strict=True)
    )
    growing = Vocabulary(NAMES, 9, 7, may_grow=True)
    grown = adopt(ours, theirs, vocabulary=growing)
    for path, axis in (("embedding", 0), ("head", 1)):
        old, new = (jnp.moveaxis(tree[path], axis, 0) for tree in (theirs, grown))
        fresh = jnp.moveaxis(ours[path], axis, 0)
        np.testing.assert_array_equal(new[:7], old[:7])
        np.testing.assert_array_equal(new[7:], fresh[7:])
        assert grown[path].sharding == ours[path].sharding
