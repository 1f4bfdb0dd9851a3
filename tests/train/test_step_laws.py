"""Laws of the forward pass and of the training step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.models import sizes
from jaxpar.nn.norm import RMSNorm
from jaxpar.nn.places import Places, one_document_per_row
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision
from jaxpar.partition.sharding import use_layout
from jaxpar.train.gradients import make_gradients
from jaxpar.train.loss import chunked_loss
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe, create
from jaxpar.train.step import make_train_step
from jaxpar.tree import flatten

T = 16
GPT = sizes.gpt(vocab_size=90, n_layers=2, d_embed=16, n_heads=4, max_positions=T)
LLAMA = sizes.llama(
    vocab_size=90, n_layers=2, d_embed=16, n_heads=4, n_kv_heads=2, d_mlp=24,
    max_positions=T, qk_norm=RMSNorm(),
)  # fmt: skip
MODELS = pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])


def recipe_of(model, dtype="float64"):
    optim = AdamW(peak_lr=1e-2, warmup_steps=4, decay_steps=40)
    return Recipe(model, CausalLM(chunk=4), optim, Precision(dtype, dtype, dtype))


def one_device():
    return Layout.parse("data=1").on(jax.devices()[:1])


def forward(model, tokens, where):
    """Logits of a fresh model in float64."""
    recipe, placed = recipe_of(model), one_device()
    params, anatomy = create(recipe, placed, seed=0).params, recipe.anatomy

    @jax.jit
    def run(params, tokens, where):
        with use_layout(placed, recipe.precision):
            model = recipe.merge(anatomy, params)
            x, _ = model(tokens, where)
            return model.unembed(x)

    return np.asarray(run(params, jnp.asarray(tokens), where))[..., : model.vocab_size]


def some_tokens(rows=1):
    return np.random.default_rng(0).integers(0, 90, (rows, T)).astype(np.int32)


@MODELS
def test_no_position_sees_the_future(model):
    with jax.enable_x64(True):
        tokens = some_tokens()
        poked = tokens.copy()
        poked[0, 7] += 1
        a, b = (
            forward(model, x, one_document_per_row(jnp.asarray(x)))
            for x in (tokens, poked)
        )
    np.testing.assert_array_equal(a[0, :7], b[0, :7])
    assert (a[0, 7:] != b[0, 7:]).any(axis=-1).all()


def packed(tokens):
    """Two documents in a row, of 6 and 10 tokens."""
    positions = np.concatenate([np.arange(6), np.arange(10)])[None].astype(np.int32)
    segments = np.repeat([1, 2], [6, 10])[None].astype(np.int32)
    weights = np.ones((1, T), np.float32)
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": positions,
        "segments": segments,
        "weights": weights,
    }


@MODELS
def test_a_packed_document_does_not_change_the_next_one(model):
    with jax.enable_x64(True):
        first = packed(some_tokens())
        other = {**first, "tokens": first["tokens"].copy()}
        other["tokens"][0, :6] = (other["tokens"][0, :6] + 5) % 90
        logits, grads = [], []
        for batch in (first, other):
            places = Places(*(jnp.asarray(batch[k]) for k in ("positions", "segments")))
            logits.append(forward(model, batch["tokens"], places))
            batch = {**batch, "weights": (batch["segments"] == 2).astype(np.float32)}
            recipe, placed = recipe_of(model), one_device()
            params = create(recipe, placed, seed=0).params
            found, _ = jax.jit(make_gradients(recipe, placed))(params, batch, 0)
            grads.append(jax.device_get(found))
        # In a row of its own, the second document has the same logits.
        second = first["tokens"][:, 6:]
        unpacked = forward(model, second, one_document_per_row(jnp.asarray(second)))
    np.testing.assert_array_equal(logits[0][0, 6:], logits[1][0, 6:])
    np.testing.assert_allclose(unpacked[0], logits[0][0, 6:], rtol=1e-10, atol=1e-12)
    for path, leaf in flatten(grads[0]).items():
        other_leaf = flatten(grads[1])[path]
        if path == "embedding":
            # Rows of the first document's tokens get a gradient through the softmax
            # alone (where embeddings are tied), which is the same in both.
            np.testing.assert_allclose(leaf, other_leaf, atol=1e-15)
        else:
            np.testing.assert_array_equal(leaf, other_leaf, err_msg=path)


def batch_of(weights):
    tokens = some_tokens(len(weights))
    return {
        "tokens": tokens,
        "targets": np.roll(tokens, -1, axis=1),
        "positions": np.broadcast_to(np.arange(T, dtype=np.int32), tokens.shape),
        "segments": np.zeros_like(tokens),
        "weights": np.asarray(weights, np.float32),
    }


def test_microbatches_of_1_and_7_tokens_give_the_mean_over_8():
    weights = np.zeros((2, T))
    weights[0, 3], weights[1, :7] = 1, 1
    with jax.enable_x64(True):
        recipe, placed = recipe_of(LLAMA), one_device()
        params = create(recipe, placed, seed=0).params
        found = []
        for m in (1, 2):
            function = jax.jit(make_gradients(recipe, placed, microbatches=m))
            grads, sums = function(params, batch_of(weights), 0)
            assert float(sums.weight) == 8
            found.append(flatten(jax.device_get(grads)))
    for path, leaf in found[0].items():
        np.testing.assert_allclose(found[1][path], leaf, rtol=1e-10, atol=1e-14)


def test_a_batch_whose_weights_are_all_0_changes_nothing_but_by_decay():
    recipe, placed = recipe_of(LLAMA, "float32"), one_device()
    recipe = dataclasses.replace(
        recipe, optim=dataclasses.replace(recipe.optim, weight_decay=0.0)
    )
    state = create(recipe, placed, seed=0)
    before = jax.device_get(state.params)
    step = make_train_step(recipe, placed)
    state, metrics = step(state, batch_of(np.zeros((2, T))))
    assert float(metrics["loss"]) == 0
    for path, leaf in flatten(jax.device_get(state.params)).items():
        np.testing.assert_array_equal(leaf, flatten(before)[path], err_msg=path)


def test_the_update_from_step_i_uses_the_schedule_at_i():
    recipe, placed = recipe_of(LLAMA, "float32"), one_device()
    state, step = create(recipe, placed, seed=0), make_train_step(recipe, placed)
    for i in range(3):
        state, metrics = step(state, batch_of(np.ones((2, T))))
        assert float(metrics["learning_rate"]) == float(recipe.optim.schedule(i))
    assert int(state.step) == 3


def test_chunks_change_neither_loss_nor_gradients():
    with jax.enable_x64(True):
        random = np.random.default_rng(1)
        x = jnp.asarray(random.normal(size=(2, T, 5)))
        w = jnp.asarray(random.normal(size=(5, 11)))
        targets = jnp.asarray(random.integers(0, 11, (2, T)), jnp.int32)
        weights = jnp.asarray(random.integers(0, 3, (2, T)), jnp.float32)

        def naive(x, w):
            soft = -jax.nn.log_softmax(x @ w)
            chosen = jnp.take_along_axis(soft, targets[..., None], axis=-1)[..., 0]
            return 3 * jnp.sum(chosen * weights)

        def chunked(x, w, chunk):
            return 3 * chunked_loss(lambda x: x @ w, x, targets, weights, chunk=chunk)

        want = jax.value_and_grad(naive, (0, 1))(x, w)
        for chunk in (1, 3, 4, T, 100):
            plain = chunked(x, w, chunk)
            np.testing.assert_allclose(plain, want[0], rtol=1e-13)
            got = jax.jit(jax.value_and_grad(chunked, (0, 1)), static_argnums=2)
            for a, b in zip(
                jax.tree.leaves(got(x, w, chunk)), jax.tree.leaves(want), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)


def test_padded_ids_of_the_vocabulary_are_never_likely():
    with jax.enable_x64(True):
        logits = forward(
            LLAMA, some_tokens(), one_document_per_row(jnp.asarray(some_tokens()))
        )
    assert logits.shape[-1] == 90 and np.isfinite(logits).all()
