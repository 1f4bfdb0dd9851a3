"""Attention is one function, however many rows it takes at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.nn.attention import Plain, may_look
from jaxpar.nn.places import NOWHERE, Places, whole
from jaxpar.nn.rope import rotate


@pytest.mark.parametrize("tile", [1, 2 * 4 * 6 * 6, 2**20])
def test_tiles_change_neither_output_nor_gradients(tile):
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        q = jnp.asarray(random.normal(size=(6, 6, 4, 8)))
        k, v = jnp.asarray(random.normal(size=(2, 6, 6, 2, 8)))
        where = Places(
            jnp.asarray(random.integers(0, 6, (6, 6)), jnp.int32),
            jnp.asarray(random.integers(0, 2, (6, 6)), jnp.int32),
        )

        def total(kernel):
            return lambda q, k, v: jnp.sum(kernel(q, k, v, where, where) ** 2)

        want = jax.value_and_grad(total(Plain().attend), (0, 1, 2))(q, k, v)
        got = jax.value_and_grad(total(Plain(tile=tile)), (0, 1, 2))(q, k, v)
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_a_query_looks_back_in_its_own_document_and_window_only():
    where = Places(jnp.asarray([[0, 1, 2, 0, 1]]), jnp.asarray([[1, 1, 1, 2, 2]]))
    assert may_look(where, where)[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert may_look(where, where, 2)[0, 2].astype(int).tolist() == [0, 1, 1, 0, 0]
    empty = Places(where.positions, jnp.full((1, 5), NOWHERE))
    assert not may_look(where, empty).any()


def test_rotation_depends_on_distance_alone():
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        q, k = jnp.asarray(random.normal(size=(2, 1, 1, 1, 8)))
        for shift in (0, 5, 1000):
            at = [jnp.asarray([[p + shift]]) for p in (7, 3)]
            product = jnp.sum(rotate(q, at[0], 1e4) * rotate(k, at[1], 1e4))
            first = product if shift == 0 else first
            np.testing.assert_allclose(product, first, rtol=1e-12)


def test_rows_of_one_document_stand_from_its_start():
    places = whole(jnp.zeros((2, 3), jnp.int32))
    assert places.positions.tolist() == [[0, 1, 2]] * 2
    assert places.segments.tolist() == [[0, 0, 0]] * 2
