"""Attention in tiles or over a split sequence is the textbook's attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.nn.context_parallel import over_seq
from jaxpar.nn.flash_attention import FlashAttention, attention_mask
from jaxpar.nn.places import NO_DOCUMENT, Places, one_document_per_row
from jaxpar.nn.rope import rotate
from jaxpar.nn.score_bias import Alibi
from jaxpar.partition.layout import Layout
from jaxpar.partition.sharding import single_device, use_layout


def naive(q, k, v, where, where_k, window=0, cap=0.0, rates=None):
    """The textbook's attention, with all scores at once; 0 where nothing is seen.

    rates: by which the scores of each head sink with the distance.
    """
    k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k) / q.shape[-1] ** 0.5
    if cap:
        scores = cap * jnp.tanh(scores / cap)
    if rates is not None:
        distance = where.positions[:, :, None] - where_k.positions[:, None, :]
        scores = scores - rates.reshape(1, -1, 1, 1) * distance[:, None]
    mask = attention_mask(where, where_k, window)[:, None]
    weights = jax.nn.softmax(scores, axis=-1, where=mask)
    return jnp.einsum("BNTS,BSNH->BTNH", jnp.where(mask, weights, 0), v)


def random_inputs(B, T, S, N, K):
    random = np.random.default_rng(0)
    q = jnp.asarray(random.normal(size=(B, T, N, 8)))
    k, v = jnp.asarray(random.normal(size=(2, B, S, K, 8)))
    # Each query sees its own key, as in every model.
    positions, segments = random.integers(0, 9, (B, S)), random.integers(0, 2, (B, S))
    where_k = Places(
        jnp.asarray(positions, jnp.int32), jnp.asarray(segments, jnp.int32)
    )
    return q, k, v, Places(*(x[:, S - T :] for x in where_k)), where_k


def place(text):
    layout = Layout.parse(text)
    return layout.on(jax.devices()[: layout.n_devices])


@pytest.mark.parametrize("window, tile", [(0, 1), (3, 40), (0, 440), (3, 2**20)])
@pytest.mark.parametrize("sizes", [(6, 10, 10, 4, 2), (2, 7, 11, 3, 3)])
def test_tiles_are_the_textbooks_attention(sizes, window, tile):
    with jax.enable_x64(True):
        q, k, v, where, where_k = random_inputs(*sizes)
        change = jnp.cos(jnp.arange(q.size)).reshape(q.shape)

        def tiled(q, k, v):
            with single_device():
                out = over_seq(FlashAttention(window, tile), q, k, v, where, where_k)
                return jnp.sum(out * change)

        def plain(q, k, v):
            return jnp.sum(naive(q, k, v, where, where_k, window) * change)

        want = jax.value_and_grad(plain, (0, 1, 2))(q, k, v)
        got = jax.jit(jax.value_and_grad(tiled, (0, 1, 2)))(q, k, v)
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("cap, biased", [(1.5, False), (0.0, True), (1.5, True)])
@pytest.mark.parametrize("text", ["data=1", "tensor=2", "ring=2", "tensor=2,ulysses=2"])
def test_capped_and_biased_scores_are_the_textbooks_on_any_layout(text, cap, biased):
    placed = place(text)
    with jax.enable_x64(True):
        # More heads than key heads, so that a device has some of either.
        q, k, v, where, _ = random_inputs(2, 16, 16, 8, 4)
        order = placed.layout.token_numbers(16)
        rates = 2.0 ** -np.arange(1, 9) if biased else None
        bias = Alibi().build(8) if biased else None
        kernel = FlashAttention(window=9, tile=300, soft_cap=cap, bias=bias)
        change = jnp.cos(jnp.arange(q.size)).reshape(q.shape)

        def split(q, k, v, where, change):
            return jnp.sum(over_seq(kernel, q, k, v, where) * change)

        def plain(q, k, v):
            return jnp.sum(naive(q, k, v, where, where, 9, cap, rates) * change)

        @jax.jit
        def gradients(*args):
            with use_layout(placed):
                return jax.value_and_grad(split, (0, 1, 2))(*args)

        args = jax.tree.map(lambda x: x[:, order], (q, k, v, where, change))
        value, grads = gradients(*jax.device_put(args, placed.replicated))
        want, wanted = jax.value_and_grad(plain, (0, 1, 2))(q, k, v)
        np.testing.assert_allclose(value, want, rtol=1e-12)
        for a, b in zip(wanted, grads, strict=True):
            np.testing.assert_allclose(a[:, order], b, rtol=1e-12, atol=1e-13)


def test_alibis_rates_are_those_of_the_paper():
    def rates(n):
        return -Alibi().build(n)(jnp.ones(1), jnp.arange(n))

    np.testing.assert_allclose(rates(8), 2.0 ** -np.arange(1, 9), rtol=1e-6)
    # Not a power of 2: the rates of 4 heads, then every other one of those of 8.
    logs = [-2, -4, -6, -8, -1, -3]
    np.testing.assert_allclose(rates(6), np.exp2(logs), rtol=1e-6)


def test_bfloat16_rounds_and_does_no_more():
    q, k, v, where, where_k = random_inputs(2, 64, 64, 4, 2)
    narrow = [x.astype(jnp.bfloat16) for x in (q, k, v)]

    @jax.jit
    def gradients(q, k, v):
        def loss(q, k, v):
            with single_device():
                out = over_seq(FlashAttention(), q, k, v, where, where_k)
            return jnp.sum(jnp.square(out.astype(jnp.float32)))

        return jax.grad(loss, (0, 1, 2))(q, k, v)

    want = gradients(*(x.astype(jnp.float32) for x in narrow))
    for a, b in zip(want, gradients(*narrow), strict=True):
        off = jnp.max(jnp.abs(a - b.astype(jnp.float32))) / jnp.max(jnp.abs(a))
        assert off < 4 * jnp.finfo(jnp.bfloat16).eps


def test_a_query_that_sees_nothing_gets_nothing():
    q, k, v, where, where_k = random_inputs(2, 3, 5, 2, 2)
    nowhere = Places(where_k.positions, jnp.full((2, 5), NO_DOCUMENT))
    out, lse = FlashAttention().forward(q, k, v, where, nowhere, jnp.arange(2))
    assert not out.any() and (lse == jnp.finfo(lse.dtype).min).all()


@pytest.mark.parametrize("text", ["context=4", "ring=4", "ulysses=4"])
def test_a_split_sequence_is_the_whole_one(text):
    layout = Layout.parse(text)
    placed = layout.on(jax.devices()[: layout.n_devices])
    with jax.enable_x64(True):
        q, k, v, where, _ = random_inputs(3, 16, 16, 4, 4)
        change = jnp.cos(jnp.arange(q.size)).reshape(q.shape)
        order = layout.token_numbers(16)

        def split(q, k, v, where, change):
            with use_layout(placed):
                return jnp.sum(
                    over_seq(FlashAttention(tile=40), q, k, v, where) * change
                )

        def plain(q, k, v):
            return jnp.sum(naive(q, k, v, where, where) * change)

        want = jax.value_and_grad(plain, (0, 1, 2))(q, k, v)
        args = jax.tree.map(lambda x: x[:, order], (q, k, v, where, change))

        def both(*args):
            with use_layout(placed):
                return jax.value_and_grad(split, (0, 1, 2))(*args)

        value, grads = jax.jit(both)(*jax.device_put(args, placed.replicated))
        np.testing.assert_allclose(value, want[0], rtol=1e-12)
        for a, b in zip(want[1], grads, strict=True):
            np.testing.assert_allclose(a[:, order], b, rtol=1e-12, atol=1e-13)


def temporary_bytes(text, T, tile=2**14):
    """Temporary memory on each device of attention and its gradients, compiled."""
    placed = Layout.parse(text).on(jax.devices()[: Layout.parse(text).n_devices])

    def total(q, k, v, where):
        return jnp.sum(over_seq(FlashAttention(tile=tile), q, k, v, where))

    def grads(*args):
        with use_layout(placed):
            return jax.grad(total, (0, 1, 2))(*args)

    by_heads = placed.sharding(("batch", "seq", "heads", "head_dim"))
    heads = jax.ShapeDtypeStruct((1, T, 2, 16), jnp.float32, sharding=by_heads)
    place = jax.ShapeDtypeStruct(
        (1, T), jnp.int32, sharding=placed.sharding(("batch", "seq"))
    )
    compiled = jax.jit(grads).lower(heads, heads, heads, Places(place, place))
    return compiled.compile().memory_analysis().temp_size_in_bytes


def test_a_rings_memory_is_linear_in_the_sequence_of_a_device():
    one, two, four = (temporary_bytes("ring=4", T) for T in (4096, 8192, 16384))
    assert one < two < 2.1 * one and two < four < 2.1 * two
    # Twice the sequence on twice the devices: the same memory on each of them.
    assert temporary_bytes("ring=8", 8192) < 1.05 * one
    # Without tiles it is quadratic, and this measurement shows it.
    untiled = [temporary_bytes("ring=4", T, 2**30) for T in (4096, 8192)]
    assert untiled[1] > 3 * untiled[0]


def test_a_query_sees_earlier_keys_of_its_own_document_and_window_only():
    where = Places(jnp.asarray([[0, 1, 2, 0, 1]]), jnp.asarray([[1, 1, 1, 2, 2]]))
    assert attention_mask(where, where)[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert attention_mask(where, where, 2)[0, 2].astype(int).tolist() == [0, 1, 1, 0, 0]
    empty = Places(where.positions, jnp.full((1, 5), NO_DOCUMENT))
    assert not attention_mask(where, empty).any()


def test_rotation_depends_on_distance_alone():
    with jax.enable_x64(True):
        random = np.random.default_rng(0)
        q, k = jnp.asarray(random.normal(size=(2, 1, 1, 1, 8)))
        for shift in (0, 5, 1000):
            at_q, at_k = (jnp.asarray([[p + shift]]) for p in (7, 3))
            product = jnp.sum(rotate(q, at_q, 1e4) * rotate(k, at_k, 1e4))
            first = product if shift == 0 else first
            np.testing.assert_allclose(product, first, rtol=1e-12)


def test_rows_of_one_document_start_at_its_beginning():
    places = one_document_per_row(jnp.zeros((2, 3), jnp.int32))
    assert places.positions.tolist() == [[0, 1, 2]] * 2
    assert places.segments.tolist() == [[0, 0, 0]] * 2
