"""A layout changes where arrays are placed, and no number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar.models import sizes
from jaxpar.nn.norm import RMSNorm
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.precision import Precision
from jaxpar.train.gradients import make_gradients
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe, create
from jaxpar.train.step import make_train_step
from jaxpar.tree import flatten

LAYOUTS = (
    "data=8",
    "data=2,tensor=4",
    "fsdp=4,tensor=2",
    "zero1=8",
    "replica=2,fsdp=4",
    "fsdp=2,ring=2,tensor=2+sp",
)
B, T = 8, 24
GPT = dataclasses.replace(
    sizes.gpt(vocab_size=120, n_layers=2, d_embed=32, n_heads=8, max_positions=T),
    dropout=0.1,
)
LLAMA = sizes.llama(
    vocab_size=120, n_layers=4, d_embed=32, n_heads=8, n_kv_heads=4, d_mlp=48,
    max_positions=T, qk_norm=RMSNorm(),
)  # fmt: skip
LLAMA = dataclasses.replace(LLAMA, windows=(0, 5), remat="full")


def recipe_of(model, dtype="float32"):
    return Recipe(
        model,
        CausalLM(chunk=8),
        # At ten times this rate random tokens make a chaotic run: rounding grows to
        # 2e-4 in 20 steps in float32, while float64 still agrees to 3e-15.
        AdamW(peak_lr=1e-3, warmup_steps=4, decay_steps=100),
        Precision(params=dtype, compute=dtype, reduce=dtype),
    )


def place(text):
    layout = Layout.parse(text)
    return layout.on(jax.devices()[: layout.n_devices])


def rows(step=0, n=B, documents=3):
    """Packed rows with uneven weights, as host arrays."""
    random = np.random.default_rng(step)
    cuts = np.sort(random.integers(0, documents, (n, T)), axis=1)
    starts = np.array([[np.argmax(row == s) for s in row] for row in cuts])
    return {
        "tokens": random.integers(0, 120, (n, T), dtype=np.int32),
        "targets": random.integers(0, 120, (n, T), dtype=np.int32),
        "positions": (np.arange(T) - starts).astype(np.int32),
        "segments": cuts.astype(np.int32),
        "weights": (random.random((n, T)) < 0.7).astype(np.float32),
    }


def put(batch, placed):
    order = placed.layout.token_numbers(T)
    batch = {name: field[:, order] for name, field in batch.items()}
    return jax.device_put(batch, placed.sharding(("batch", "seq")))


def gradients_of(model, layout, **how):
    """Every gradient leaf and the sums, in float64, as NumPy."""
    with jax.enable_x64(True):
        placed, recipe = place(layout), recipe_of(model, "float64")
        state = create(recipe, placed, seed=1)
        function = make_gradients(recipe, placed, **how)
        grads, sums = jax.jit(function)(state.params, put(rows(), placed), jnp.int32(3))
        return jax.device_get((flatten(grads), sums._asdict()))


@pytest.fixture(scope="module")
def one_device():
    return {form: gradients_of(model, "data=1") for form, model in MODELS.items()}


MODELS = {"gpt": GPT, "llama": LLAMA}
# The others are compared by `pytest -m slow`.
EVERYDAY = {
    ("gpt", "fsdp=4,tensor=2"),
    ("gpt", "fsdp=2,ring=2,tensor=2+sp"),
    ("llama", "fsdp=4,tensor=2"),
}


def cases():
    for form in MODELS:
        for layout in LAYOUTS:
            marks = () if (form, layout) in EVERYDAY else pytest.mark.slow
            yield pytest.param(form, layout, marks=marks)


@pytest.mark.parametrize(("form", "layout"), cases())
def test_every_gradient_leaf_is_that_of_one_device(form, layout, one_device):
    want, sums = one_device[form]
    got, got_sums = gradients_of(MODELS[form], layout)
    assert got_sums["weight"] == sums["weight"]
    np.testing.assert_allclose(got_sums["loss"], sums["loss"], rtol=1e-13)
    assert got.keys() == want.keys()
    largest = max(np.max(np.abs(leaf)) for leaf in want.values())
    for path, leaf in want.items():
        scale = max(np.max(np.abs(leaf)), 1e-3 * largest)
        assert np.max(np.abs(got[path] - leaf)) / scale < 1e-12, path


@pytest.mark.parametrize("form", ["gpt", pytest.param("llama", marks=pytest.mark.slow)])
def test_microbatches_change_no_gradient_and_no_dropout(form, one_device):
    want, sums = one_device[form]
    got, got_sums = gradients_of(MODELS[form], "data=2", microbatches=4)
    np.testing.assert_allclose(got_sums["loss"], sums["loss"], rtol=1e-13)
    largest = max(np.max(np.abs(leaf)) for leaf in want.values())
    for path, leaf in want.items():
        scale = max(np.max(np.abs(leaf)), 1e-3 * largest)
        assert np.max(np.abs(got[path] - leaf)) / scale < 1e-12, path


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", ["fsdp=8", "replica=2,fsdp=4", "fsdp=2,ring=2,tensor=2"]
)
def test_how_often_fsdp_gathers_changes_no_gradient(layout, one_device):
    want, _ = one_device["llama"]
    got, _ = gradients_of(LLAMA, layout, fsdp_gathers="step")
    largest = max(np.max(np.abs(leaf)) for leaf in want.values())
    for path, leaf in want.items():
        scale = max(np.max(np.abs(leaf)), 1e-3 * largest)
        assert np.max(np.abs(got[path] - leaf)) / scale < 1e-12, path


def losses_of(layout, steps=20):
    placed, recipe = place(layout), recipe_of(LLAMA)
    state = create(recipe, placed, seed=1)
    step = make_train_step(recipe, placed)
    losses = []
    for i in range(steps):
        state, metrics = step(state, put(rows(i), placed))
        losses.append(metrics["loss"])
    return np.array(jax.device_get(losses))


@pytest.fixture(scope="module")
def losses_on_one_device():
    return losses_of("data=1")


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param("data=8", marks=pytest.mark.slow),
        pytest.param("data=2,tensor=4", marks=pytest.mark.slow),
        "fsdp=4,tensor=2",
    ],
)
def test_losses_are_those_of_one_device(layout, losses_on_one_device):
    np.testing.assert_allclose(losses_of(layout), losses_on_one_device, rtol=1e-5)


def test_a_layout_of_one_device_uses_one():
    placed = place("data=1")
    assert placed.mesh.size == 1
    state = create(recipe_of(LLAMA), placed, seed=0)
    assert len(state.params["embedding"].sharding.device_set) == 1


@pytest.mark.slow
@pytest.mark.exact
def test_initial_weights_are_bit_equal_on_every_layout():
    states = [
        create(recipe_of(LLAMA), place(layout), seed=5)
        for layout in ("data=1", "fsdp=4,tensor=2")
    ]
    one, many = (flatten(jax.device_get(state.params)) for state in states)
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, many[path], err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data=8", "does not match the specs of the input"),
        ("data=2,tensor=4", "can only refer to Auto axes"),
        ("fsdp=8", "does not match the specs of the input"),
    ],
)
def test_explicit_axes_refuse_what_automatic_axes_resolve(text, words):
    """Why the mesh has automatic axes: each array would have to be resharded aloud."""
    layout = Layout.parse(text)
    with jax.enable_x64(True), pytest.raises(ValueError, match=words):
        mesh = jax.make_mesh(
            tuple(layout.sizes.values()),
            tuple(layout.sizes),
            axis_types=(jax.sharding.AxisType.Explicit,) * len(layout.sizes),
        )
        placed, recipe = Placed(layout, mesh), recipe_of(GPT, "float64")
        state = create(recipe, placed, seed=1)
        function = jax.jit(make_gradients(recipe, placed))
        function(state.params, put(rows(), placed), jnp.int32(3))
