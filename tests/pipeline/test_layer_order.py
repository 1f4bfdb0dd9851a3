"""Devices hold a circular pipeline's layers in another order; nothing else does.

pytest tests/pipeline/test_layer_order.py
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpar import evaluate, finetune, pretrain
from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.experiment import Finetune
from jaxpar.generate.answer import logits
from jaxpar.generate.sampling import Generator, Sampling
from jaxpar.optim.optimizer import AdamW, Muon
from jaxpar.partition.layout import Layout
from jaxpar.pipeline.layer_order import (
    in_natural_order,
    in_stored_order,
    layer_order,
    on_devices,
)
from jaxpar.run.directory import RunDir
from jaxpar.train.state import create
from jaxpar.train.step import make_train_step
from tests.pipeline.test_stages import batch_of, experiment, params_of, placed_on

CIRCULAR = "stage=2x2,data=2"


def place(text):
    layout = Layout.parse(text)
    return layout.on(jax.devices()[: layout.n_devices])


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert (x.shape, x.dtype) == (y.shape, y.dtype) and x.tobytes() == y.tobytes()


@pytest.fixture(autouse=True)
def eight_devices():
    """Starts the backend, before a run on fewer devices would simulate only those."""
    assert len(jax.devices()) == 8


def test_a_stage_holds_the_chunks_of_its_rounds_one_after_another():
    layout = Layout.parse("stage=2x3")
    assert [*layer_order(layout, 6)] == [0, 2, 4, 1, 3, 5]
    assert [*layer_order(layout, 12)] == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
    x, names = np.arange(24.0).reshape(2, 12), ("embed", "layers")
    stored = in_stored_order(x, names, layout)
    np.testing.assert_array_equal(stored, x[:, layer_order(layout, 12)])
    np.testing.assert_array_equal(in_natural_order(stored, names, layout), x)


@pytest.mark.parametrize("text", ["stage=2,data=2", "data=4"])
def test_without_rounds_nothing_is_done(text):
    recipe, placed = experiment(text).recipe(), place(text)
    state = create(recipe, placed, seed=0)
    assert recipe.to_stored(placed, state) is state
    assert recipe.to_natural(placed, state) is state
    layout, x = placed.layout.for_generation(), np.arange(4)
    assert in_stored_order(x, ("layers",), layout) is x


@pytest.mark.parametrize(
    "text", ["stage=2x2,fsdp=2,tensor=2", "stage=2x2", "stage=4x2"]
)
def test_every_bit_and_every_placement_survives_the_change_of_order(text):
    placed = place(text)
    names = ("layers", "embed", "mlp")
    values = np.random.default_rng(0).integers(0, 2**32, (8, 8, 16), np.uint32)
    values[:, 0, :4] = 0x80000000, 0x7FC01234, 0xFF800001, 1  # -0, NaNs, the least.
    sharding = placed.sharding(names, "stored")
    natural = values.view(np.float32)
    x = jax.device_put(natural, sharding)
    stored = on_devices(in_stored_order, x, names, placed.layout, donate=True)
    assert stored.sharding == sharding
    assert_same_bits(stored, natural[layer_order(placed.layout, 8)])
    back = on_devices(in_natural_order, stored, names, placed.layout)
    assert back.sharding == sharding
    assert_same_bits(back, natural)


@pytest.mark.parametrize("optim", [AdamW, Muon])
def test_a_state_goes_from_a_circular_pipeline_to_another_layout_and_back(
    optim, tmp_path
):
    run = dataclasses.replace(
        experiment(CIRCULAR), optim=optim(peak_lr=1e-2, warmup_steps=1, decay_steps=8)
    )
    recipe, placed, other = run.recipe(), placed_on(run), place("data=4")
    state = create(recipe, placed, seed=0)
    batch = jax.device_put(batch_of(run), placed.sharding(("batch", "seq")))
    state, _ = make_train_step(recipe, placed, **run.step_options)(state, batch)
    # Of no leaf are all layers alike, else a wrong order would not show.
    moved = jax.tree.map(lambda x: x + jnp.arange(x.size).reshape(x.shape), state)
    state = jax.device_put(moved, jax.tree.map(lambda x: x.sharding, state))
    before = jax.device_get(state)

    def saved(name, natural):
        checkpoints = Checkpoints(tmp_path / name)
        checkpoints.save(1, natural, memory={})
        checkpoints.close()
        return Checkpoints(tmp_path / name, read_only=True)

    first = saved("first", recipe.to_natural(placed, state))
    elsewhere, _ = first.restore(1, recipe.target(other))
    changed = [
        path
        for (path, x), y in zip(
            jax.tree_util.tree_leaves_with_path(before),
            jax.tree.leaves(elsewhere),
            strict=True,
        )
        if x.tobytes() != np.asarray(y).tobytes()
    ]
    # Parameters and moments of the stack, and nothing else.
    assert changed and all("layers" in jax.tree_util.keystr(path) for path in changed)
    assert any("opt_state" in jax.tree_util.keystr(path) for path in changed)
    second = saved("second", recipe.to_natural(other, elsewhere))
    again, _ = second.restore(1, recipe.target(placed))
    assert_same_bits(recipe.to_stored(placed, again), before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a circular pipeline, whose only update is too small to be seen."""
    assert len(jax.devices()) == 8
    folder = tmp_path_factory.mktemp("circular") / "run"
    optim = AdamW(peak_lr=1e-9, warmup_steps=1, decay_steps=8)
    run = dataclasses.replace(experiment(CIRCULAR), optim=optim, num_steps=1)
    assert pretrain.main(run, run_dir=folder) == 0
    return folder, run


def test_a_checkpoint_holds_layers_in_their_natural_order(trained):
    folder, run = trained
    expected = create(run.recipe(), place("data=1"), seed=run.seed).params
    for x, y in zip(
        jax.tree.leaves(params_of(folder).params),
        jax.tree.leaves(expected),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, atol=1e-7)


def test_a_run_is_read_on_any_layout(trained):
    folder, _ = trained
    tokens = np.arange(64, dtype=np.int32).reshape(4, 16)
    scores, found = zip(
        *(
            (
                evaluate.main(folder, layout=text)["nats_per_token"],
                logits(folder, tokens, layout=text),
            )
            for text in ("data=1", CIRCULAR)
        ),
        strict=True,
    )
    assert scores[1] == pytest.approx(scores[0], rel=1e-6)
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)


def test_a_generator_takes_the_parameters_of_a_step(trained):
    _, run = trained
    recipe, how = run.recipe(), Sampling(max_new_tokens=8, temperature=0.0)
    prompts = [[1, 2, 3, 4], [5, 6, 7]]
    answers = []
    for text in ("data=1", CIRCULAR):
        placed = place(text)
        params = create(recipe, placed, seed=3).params
        generator = Generator(recipe, placed, params, how=how)
        generator.params = params
        answers.append(generator(prompts))
    assert answers[0] == answers[1]


def test_a_fine_tune_on_a_circular_pipeline_starts_from_what_was_learned(trained):
    folder, base = trained
    placed = place(CIRCULAR)
    tune = Finetune(
        start_from=str(folder), data=base.data, optim=base.optim, num_steps=1,
        layout=placed.layout,
    )  # fmt: skip
    tune = tune.with_model_of(lambda: base)
    state = finetune.start_from(tune, RunDir(folder), base, placed, 1)
    natural = tune.recipe().to_natural(placed, state.params)
    assert_same_bits(natural, params_of(folder).params)
