"""Experiments that differ in their schedules alone compile one training step.

pytest tests/train/test_compiled_once.py
"""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from jaxpar import cache
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe, create
from jaxpar.train.step import make_train_step
from tests.train.test_own_objective import batch_of

MODEL = sizes.llama(
    vocab_size=50, n_layers=1, d_embed=24, n_heads=2, n_kv_heads=2, d_mlp=8,
    max_positions=16,
)  # fmt: skip
OPTIM = AdamW(peak_lr=1e-3, warmup_steps=2, decay_steps=9)
PLACED = Layout.parse("data=2").on(jax.devices()[:2])
KEPT = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}


@contextlib.contextmanager
def everything_kept(folder):
    """JAX keeps each program, however small, in a folder of its own."""
    before = {name: jax.config.values[name] for name in KEPT}
    kept = jax.config.values["jax_compilation_cache_dir"]
    for name, value in {**KEPT, "jax_compilation_cache_dir": str(folder)}.items():
        jax.config.update(name, value)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()
    try:
        yield
    finally:
        for name, value in {**before, "jax_compilation_cache_dir": kept}.items():
            jax.config.update(name, value)
        jax.experimental.compilation_cache.compilation_cache.reset_cache()


def recipe(**fields):
    return Recipe(MODEL, CausalLM(), dataclasses.replace(OPTIM, **fields))


def text_of(recipe):
    """The program of a recipe's step, before it is compiled."""
    step = make_train_step(recipe, PLACED)
    return step.lower(recipe.target(PLACED), batch_of()).as_text()


@pytest.fixture(scope="module")
def lowered():
    return text_of(recipe())


def test_a_sweep_of_the_learning_rate_compiles_its_step_once(tmp_path):
    missed = []

    def listen(event, **_):
        missed.append(event)

    batch = jax.device_put(batch_of(), PLACED.sharding(("batch", "seq")))
    counts = []
    with everything_kept(tmp_path):
        jax.monitoring.register_event_listener(listen)
        for peak_lr in (1e-3, 2e-3, 4e-3):
            swept = recipe(peak_lr=peak_lr)
            state, step = create(swept, PLACED, seed=0), make_train_step(swept, PLACED)
            missed.clear()
            _, metrics = step(state, batch)
            assert float(metrics["learning_rate"]) == np.float32(peak_lr) / 2
            counts.append(missed.count("/jax/compilation_cache/cache_misses"))
    # Of the others, the tiny program that computes the rate alone.
    assert counts == [2, 1, 1]


@pytest.mark.parametrize(
    "other",
    [
        {"peak_lr": 2e-3},
        {"warmup_steps": 5, "decay_steps": 90, "stable_steps": -1, "final_lr": 0.5},
        {"decay_shape": "linear"},
    ],
    ids=str,
)
def test_no_number_of_the_schedule_is_part_of_the_step(other, lowered):
    assert text_of(recipe(**other)) == lowered


def test_weight_decay_is_part_of_the_step(lowered):
    """The test above can fail."""
    assert text_of(recipe(weight_decay=0.2)) != lowered


def test_an_optimizer_of_ones_own_needs_no_support_for_it():
    @dataclasses.dataclass(frozen=True)
    class Stepwise(AdamW):
        """One that makes its own schedule of its own field."""

        half_life: int = 1

        @property
        def schedule(self):
            return lambda step, decay_from: (
                self.peak_lr * 0.5 ** (step // self.half_life)
            )

    recipe = Recipe(MODEL, CausalLM(), Stepwise(0.5, 0, 1))
    state, step = create(recipe, PLACED, seed=0), make_train_step(recipe, PLACED)
    batch = jax.device_put(batch_of(), PLACED.sharding(("batch", "seq")))
    for rate in (0.5, 0.25, 0.125):
        state, metrics = step(state, batch)
        assert float(metrics["learning_rate"]) == rate


def test_programs_are_kept_where_they_are_kept_already(monkeypatch, tmp_path):
    name = "jax_compilation_cache_dir"
    kept = jax.config.values[name]
    cache.keep_programs()
    assert jax.config.values[name] == kept
    monkeypatch.setenv("JAXPAR_CACHE", str(tmp_path))
    try:
        jax.config.update(name, None)
        cache.keep_programs()
        assert jax.config.values[name] == str(tmp_path / "compiled")
    finally:
        jax.config.update(name, kept)
