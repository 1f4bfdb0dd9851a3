"""The compiled step communicates no more than it must, in the right type."""

import dataclasses
import functools
import pathlib
import re
import tempfile

import jax
import jax.numpy as jnp
import pytest

from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision
from jaxpar.train.gradients import make_gradients
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe
from jaxpar.train.step import make_train_step

# Their product, 960, is no other size in the program.
B, T = 24, 40
COLLECTIVE = re.compile(
    r"= (?:\()?(\w+)\[([\d,]*)\][^=]*?\b"
    r"(all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)\("
)
GPT = sizes.gpt(vocab_size=120, n_layers=2, d_embed=32, n_heads=8, max_positions=T)
LLAMA = dataclasses.replace(
    sizes.llama(
        vocab_size=120, n_layers=2, d_embed=32, n_heads=8, n_kv_heads=8, d_mlp=48,
        max_positions=T,
    ),
    remat="full",
)  # fmt: skip


def partitioned(lowered, folder: pathlib.Path) -> str:
    """The module after the SPMD partitioner; on a CPU later passes widen its types."""
    lowered.compile(
        compiler_options={
            "xla_dump_to": str(folder),
            "xla_dump_hlo_pass_re": "spmd-partitioning",
        }
    )
    (module,) = folder.glob("*after_spmd-partitioning*.txt")
    return module.read_text()


def batch_on(placed):
    """Shapes of a batch."""
    row = placed.sharding(("batch", "seq"))
    batch = {
        name: jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=row)
        for name in ("tokens", "targets", "positions", "segments")
    }
    batch["weights"] = jax.ShapeDtypeStruct((B, T), jnp.float32, sharding=row)
    return batch


def recipe_of(model, compute="float32"):
    optim = AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=10)
    return Recipe(model, CausalLM(chunk=8), optim, Precision(compute=compute))


# Once each: what JAX has compiled before, it neither compiles nor dumps again.
@functools.cache
def step_on(model, text, compute="float32"):
    """The partitioned module of a training step."""
    layout = Layout.parse(text)
    placed = layout.on(jax.devices()[: layout.n_devices])
    recipe = recipe_of(model, compute)
    step = make_train_step(recipe, placed)
    lowered = step.lower(recipe.target(placed), batch_on(placed))
    with tempfile.TemporaryDirectory() as folder:
        return partitioned(lowered, pathlib.Path(folder))


def collectives(module: str) -> list[tuple[str, str, tuple[int, ...]]]:
    """(kind, type, shape) of every collective in a module's text."""
    return [
        (kind, dtype, tuple(int(n) for n in shape.split(",") if n))
        for dtype, shape, kind in COLLECTIVE.findall(module)
    ]


@pytest.mark.parametrize("model", [GPT, LLAMA], ids=["gpt", "llama"])
@pytest.mark.parametrize("layout", ["data=8", "data=2,tensor=4", "fsdp=4,tensor=2"])
def test_no_collective_moves_the_rows_of_the_whole_batch(layout, model):
    found = collectives(step_on(model, layout))
    assert found
    for kind, dtype, shape in found:
        rows = [shape[i] * shape[i + 1] for i in range(len(shape) - 1)]
        assert B * T not in (*shape, *rows), (kind, dtype, shape)


@pytest.mark.parametrize("layout", ["data=8", "fsdp=8"])
def test_gradients_are_reduced_in_float32_when_the_compute_is_bfloat16(layout):
    # Without a tensor axis every reduction in the step is one of gradients or losses.
    module = step_on(GPT, layout, "bfloat16")
    kinds = {dtype for kind, dtype, _ in collectives(module) if "reduce" in kind}
    assert kinds == {"f32"}


def test_a_bfloat16_reduction_would_be_found(tmp_path):
    placed = Layout.parse("data=8").on(jax.devices())
    rows = placed.sharding(("batch", "embed"))
    x = jax.ShapeDtypeStruct((B, 32), jnp.bfloat16, sharding=rows)
    w = jax.ShapeDtypeStruct((32, 48), jnp.float32, sharding=placed.replicated)

    def loss(w, x):
        return jnp.sum((x @ w.astype(jnp.bfloat16)).astype(jnp.float32) ** 2)

    step = jax.jit(jax.grad(loss), out_shardings=placed.replicated)
    module = partitioned(step.lower(w, x), tmp_path)
    assert "bf16" in {dtype for kind, dtype, _ in collectives(module)}


def test_the_vocabulary_is_never_gathered():
    module = step_on(LLAMA, "data=2,tensor=4")
    gathered = [shape for kind, _, shape in collectives(module) if "gather" in kind]
    assert not [shape for shape in gathered if LLAMA.padded_vocab in shape]


@pytest.mark.parametrize("layout", ["data=1", "data=4,tensor=2"])
def test_a_rematerialisation_policy_repeats_only_the_products_that_it_drops(layout):
    placed = Layout.parse(layout)
    placed = placed.on(jax.devices()[: placed.n_devices])

    def products(remat):
        recipe = recipe_of(dataclasses.replace(LLAMA, remat=remat))
        params, step = recipe.target(placed).params, jnp.int32(0)
        trace = jax.make_jaxpr(make_gradients(recipe, placed))
        return str(trace(params, batch_on(placed), step)).count(" dot_general[")

    least = products("none")
    # Products with parameters and the outputs of attention are kept.
    assert products("dots") == least
    # Those with q, k, v, the mixed values, gate and up, and attention's own two.
    assert products("full") == least + 8
    assert products("save:attn/found") == least + 6
