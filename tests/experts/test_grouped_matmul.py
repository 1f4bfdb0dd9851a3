"""Products by groups are those of a loop over the groups, whatever computes them.

pytest tests/experts/test_grouped_matmul.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.experts.grouped_matmul import EQUAL, RAGGED, TABLE, TILES, project_groups
from jaxpar.partition.precision import Precision
from jaxpar.partition.sharding import single_device

ROWS, WIDTH, COLUMNS = 300, 5, 7
SIZES = {
    "uneven": (17, 0, 130, 3, 150),
    "rows left over": (1, 40, 0, 2, 100),
    "one has all": (0, 0, 300, 0, 0),
    "none has any": (0, 0, 0, 0, 0),
}
FLOAT64 = Precision(params="float64", compute="float64", reduce="float64")


@pytest.fixture(autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


def by_loop(x, w, sizes):
    y, start = np.zeros((len(x), w.shape[2])), 0
    for group, size in enumerate(sizes):
        y[start : start + size] = x[start : start + size] @ w[group]
        start += size
    return y


def arrays(n_groups=5):
    rng = np.random.default_rng(0)
    shapes = (ROWS, WIDTH), (n_groups, WIDTH, COLUMNS), (ROWS, COLUMNS)
    return [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]


def test_every_kind_of_device_has_an_entry_that_is_proven_here():
    assert {TILES, RAGGED} == set(TABLE.values())


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("matmul", [TILES, RAGGED], ids=lambda m: m.name)
def test_rows_and_weights_are_those_of_a_loop(matmul, sizes):
    x, w, y = arrays()
    found = jax.jit(matmul.rows, static_argnums=3)(x, w, jnp.array(sizes), "float64")
    np.testing.assert_allclose(found, by_loop(x, w, sizes), atol=1e-12)
    found = jax.jit(matmul.weights, static_argnums=3)(x, y, jnp.array(sizes), "float64")
    ends = np.cumsum(sizes)
    slices = [slice(end - n, end) for end, n in zip(ends, sizes, strict=True)]
    want = [x[rows].T @ y[rows] for rows in slices]
    np.testing.assert_allclose(found, want, atol=1e-12)


def test_groups_of_one_size_are_one_batched_product():
    x, w, y = arrays()
    sizes = (60,) * 5
    np.testing.assert_allclose(
        EQUAL.rows(x, w, jnp.array(sizes), "float64"), by_loop(x, w, sizes), atol=1e-12
    )
    found = EQUAL.weights(x, y, jnp.array(sizes), "float64")
    want = [x[60 * g : 60 * g + 60].T @ y[60 * g : 60 * g + 60] for g in range(5)]
    np.testing.assert_allclose(found, want, atol=1e-12)


@pytest.mark.parametrize("matmul", [TILES, RAGGED], ids=lambda m: m.name)
def test_gradients_are_those_of_a_mask(matmul):
    x, w, y = arrays()
    sizes = jnp.array(SIZES["rows left over"])
    names = ("experts", "embed", "mlp")
    of_group = jnp.repeat(jnp.arange(5), sizes, total_repeat_length=ROWS)
    mask = (jnp.arange(ROWS) < jnp.sum(sizes))[:, None] * jax.nn.one_hot(of_group, 5)

    def loss(x, w):
        (found,) = project_groups(x, sizes, [w], [names], matmul)
        return jnp.sum(found * y)

    def masked(x, w):
        return jnp.sum(jnp.einsum("mg,mk,gkn->mn", mask, x, w) * y)

    with single_device(FLOAT64):
        found = jax.grad(loss, (0, 1))(x, w)
    for got, want in zip(found, jax.grad(masked, (0, 1))(x, w), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-12)
