"""How far are gradients from float64, by the types of a step and its microbatches?

    python -m experiments.bench.accumulation

Of each leaf the largest difference from the gradient in float64 (of the same, rounded
parameters) over the leaf's largest element; printed is the worst leaf. Expected: in
each line the same for any number of microbatches, up to rounding in `reduce`.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision
from jaxpar.train.gradients import make_gradients
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe, create

B, T, VOCABULARY = 64, 32, 120
MICROBATCHES = (1, 8, 64)
TYPES = (
    ("float32", "float32", "float32"),
    ("bfloat16", "float32", "float32"),
    ("float16", "float32", "float32"),
    ("bfloat16", "bfloat16", "float32"),
    ("float16", "float16", "float32"),
    ("bfloat16", "bfloat16", "bfloat16"),
)
MODEL = sizes.llama(
    vocab_size=VOCABULARY, n_layers=2, d_embed=32, n_heads=4, n_kv_heads=2, d_mlp=48,
    max_positions=T,
)  # fmt: skip


def worst_leaf(precision: Precision, microbatches: int) -> float:
    """The largest relative error of a gradient's leaf, against float64."""
    with jax.enable_x64(True):
        recipe = _recipe(precision)
        placed = Layout.parse("data=1").on(jax.devices()[:1])
        params = create(recipe, placed, seed=0).params
        found = _gradients(recipe, params, microbatches)
        exact = _recipe(Precision("float64", "float64", "float64"))
        wide = jax.tree.map(lambda w: w.astype(jnp.float64), params)
        pairs = zip(
            jax.tree.leaves(found),
            jax.tree.leaves(_gradients(exact, wide, 1)),
            strict=True,
        )
        return max(
            float(np.abs(a.astype(np.float64) - b).max() / np.abs(b).max())
            for a, b in pairs
        )


def _recipe(precision: Precision) -> Recipe:
    optim = AdamW(1e-3, warmup_steps=1, decay_steps=9)
    return Recipe(MODEL, CausalLM(chunk=8), optim, precision)


def _gradients(recipe: Recipe, params, microbatches: int):
    placed = Layout.parse("data=1").on(jax.devices()[:1])
    drawn = np.random.default_rng(0)
    tokens = drawn.integers(0, VOCABULARY, (B, T + 1), dtype=np.int32)
    batch = {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "positions": np.tile(np.arange(T, dtype=np.int32), (B, 1)),
        "segments": np.zeros((B, T), np.int32),
        "weights": np.ones((B, T), np.float32),
    }
    function = jax.jit(make_gradients(recipe, placed, microbatches=microbatches))
    return jax.device_get(function(params, batch, jnp.int32(0))[0])


def main() -> None:
    print(f"jax {jax.__version__}, {os.cpu_count()} cores; largest relative error")
    print(f"{'params, compute, reduce':32}", *(f"M={m:<8}" for m in MICROBATCHES))
    for types in TYPES:
        errors = [worst_leaf(Precision(*types), m) for m in MICROBATCHES]
        print(f"{', '.join(types):32}", *(f"{e:<10.1e}" for e in errors), flush=True)


if __name__ == "__main__":
    main()
