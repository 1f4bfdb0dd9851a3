"""The kernels of accelerators compute what the tiles compute, on packed rows."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench.accelerator import packed_batch
from experiments.bench.kernel_check import (
    MOST,
    both_passes,
    largest_error,
    packed_rows,
    random_arrays,
    with_wrong_segment,
)
from jaxpar.models import sizes
from jaxpar.nn.attention import AttentionConfig, attention_said
from jaxpar.nn.context_parallel import over_seq
from jaxpar.nn.flash_attention import FlashAttention
from jaxpar.nn.kernel_table import FUSED, kernel_for
from jaxpar.nn.score_bias import Alibi
from jaxpar.nn.splash_attention import SplashAttention
from jaxpar.nn.tiling import tiling_of
from jaxpar.nn.triton_attention import Blocks, TritonAttention
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.precision import Precision
from jaxpar.partition.sharding import use_layout
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe, create
from jaxpar.train.step import make_train_step

TRITON, SPLASH = TritonAttention(interpret=True), SplashAttention(interpret=True)
SMALL = TritonAttention(Blocks(32, 16, 32, 16), interpret=True)


@pytest.fixture(autouse=True)
def ranks_may_differ():
    """JAX's own kernels add arrays of different ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


SIZES = [(1, 256, 2, 2, 64), (2, 200, 2, 1, 80), (1, 20, 4, 2, 8)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("kernel", [TRITON, SPLASH], ids=["triton", "splash"])
def test_a_kernel_is_the_tiles_on_packed_rows(kernel, shape, dtype):
    arrays = random_arrays(*shape, dtype)
    assert largest_error(kernel, arrays, packed_rows(*shape[:2])) < MOST[dtype]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", [SMALL, SPLASH], ids=["triton", "splash"])
def test_one_token_in_a_wrong_segment_is_found(kernel, dtype):
    arrays, where = random_arrays(1, 256, 2, 2, 16, dtype), packed_rows(1, 256)
    wrong = with_wrong_segment(where)
    assert largest_error(kernel, arrays, where) < MOST[dtype]
    assert largest_error(kernel, arrays, where, seen=wrong) > 5 * MOST[dtype]


@pytest.mark.parametrize("window, cap", [(40, 0.0), (0, 1.5), (7, 2.0)])
def test_windows_and_soft_caps_of_a_tpus_kernel_are_the_tiles(window, cap):
    tiles = FlashAttention(window, soft_cap=cap)
    kernel = SplashAttention(window, cap, interpret=True)
    arrays = random_arrays(1, 300, 2, 1, 16, "float32")
    error = largest_error(kernel, arrays, packed_rows(1, 300), tiles=tiles)
    assert error < MOST["float32"]


@pytest.fixture
def kernel_on_a_cpu(monkeypatch):
    """The table as if CPUs had the kernel of GPUs, for float32 too."""
    fused = dataclasses.replace(
        FUSED["gpu"], make=lambda tiles: SMALL, types=("float32",)
    )
    monkeypatch.setitem(FUSED, "cpu", fused)


@pytest.mark.parametrize(
    "text", ["data=2", "fsdp=2,tensor=2", "tensor=2+sp", "ulysses=2,tensor=2"]
)
def test_a_kernel_computes_the_same_on_every_layout_that_keeps_rows(
    text, kernel_on_a_cpu
):
    layout = Layout.parse(text)
    placed = layout.on(jax.devices()[: layout.n_devices])
    q, k, v, grad = random_arrays(2, 64, 8, 4, 16, "float32")
    where = packed_rows(2, 64)
    found = []

    @jax.jit
    def gradients(q, k, v, where, grad):
        def loss(q, k, v):
            kernel = kernel_for(FlashAttention(), q, own_keys=True)
            found.append(kernel)
            return jnp.sum(over_seq(kernel, q, k, v, where) * grad)

        with use_layout(placed):
            return jax.grad(loss, (0, 1, 2))(q, k, v)

    got = gradients(*jax.device_put((q, k, v, where, grad), placed.replicated))
    want = both_passes(FlashAttention(), where, [q, k, v, grad])[2:]
    assert found == [SMALL]
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=MOST["float32"] * abs(a).max())


@pytest.mark.slow
@pytest.mark.parametrize("text", ["fsdp=2,tensor=2", "replica=2,data=2,ulysses=2"])
def test_a_step_with_a_kernel_is_the_step_with_tiles(text, monkeypatch):
    model = sizes.llama(
        vocab_size=32, n_layers=2, d_embed=32, n_heads=4, n_kv_heads=4, d_mlp=32,
        max_positions=32, remat="dots",
    )  # fmt: skip
    optim = AdamW(1e-3, warmup_steps=1, decay_steps=9)
    recipe, layout = Recipe(model, CausalLM(chunk=16), optim), Layout.parse(text)
    placed = layout.on(jax.devices()[: layout.n_devices])
    batch = packed_batch(placed, 8, 32, 32)

    def losses():
        step = make_train_step(recipe, placed, microbatches=2)
        state, found = create(recipe, placed, seed=0), []
        for _ in range(3):
            state, metrics = step(state, batch)
            found += [metrics["loss"], metrics["grad_norm"]]
        return np.asarray(found)

    want = losses()
    used = []
    fused = dataclasses.replace(
        FUSED["gpu"], make=lambda tiles: used.append(1) or SMALL, types=("float32",)
    )
    monkeypatch.setitem(FUSED, "cpu", fused)
    np.testing.assert_allclose(losses(), want, rtol=2e-6)
    assert used


PLAIN = AttentionConfig(n_heads=8, n_kv_heads=2, head_dim=64)
NARROW = Precision(compute="bfloat16")


@pytest.mark.parametrize(
    "platform, changes, text, precision, said",
    [
        ("gpu", {}, "fsdp=4,tensor=2", NARROW, "Pallas kernel with segments"),
        ("gpu", {}, "ulysses=2", NARROW, "Pallas kernel with segments"),
        ("gpu", {}, "data=8", Precision(), "tiles (float32 is not one of bfloat16, "),
        (
            "gpu",
            {},
            "data=8",
            Precision(products="fast"),
            "Pallas kernel with segments",
        ),
        ("gpu", {"window": 9}, "data=8", NARROW, "tiles (a window is set)"),
        ("gpu", {"soft_cap": 9.0}, "data=8", NARROW, "tiles (a soft cap is set)"),
        ("gpu", {"head_dim": 512}, "data=8", NARROW, "tiles (heads are 512 wide, "),
        ("gpu", {}, "ring=2", NARROW, "tiles (ring splits the keys of a row)"),
        ("tpu", {}, "context=2", NARROW, "tiles (context splits the keys of a row)"),
        ("tpu", {}, "data=8", NARROW, "splash attention with segments"),
        ("tpu", {"window": 9}, "data=8", NARROW, "splash attention with segments"),
        ("tpu", {"score_bias": Alibi()}, "data=8", NARROW, "tiles (scores have a "),
        ("cpu", {}, "data=8", NARROW, "tiles (cpu has no kernel of its own)"),
    ],
)
def test_what_is_said_is_what_runs(
    platform, changes, text, precision, said, monkeypatch
):
    config = dataclasses.replace(PLAIN, **changes)
    layout = Layout.parse(text)
    assert attention_said(config, layout, platform, precision).startswith(
        f"attention: {said}"
    )
    tiles = FlashAttention(
        config.window, soft_cap=config.soft_cap, bias=config.score_bias.build(8)
    )
    q = jnp.zeros((1, 8, 8, config.head_dim), precision.compute)
    monkeypatch.setattr(Placed, "platform", platform)
    with use_layout(layout.on(jax.devices()[: layout.n_devices]), precision):
        assert (kernel_for(tiles, q, own_keys=True) is tiles) == ("tiles" in said)
        assert kernel_for(tiles, q, own_keys=False) is tiles


def test_tiles_are_as_large_as_the_layouts_devices_like_them(monkeypatch):
    q = jnp.zeros((1, 2048, 32, 1), jnp.bfloat16)
    placed = Layout.parse("data=1").on(jax.devices()[:1])
    for platform, side in (("cpu", 181), ("gpu", 2048), ("tpu", 2048)):
        monkeypatch.setattr(Placed, "platform", platform)
        with use_layout(placed):
            tiling = tiling_of(q, q, 0)
        assert (tiling.query_tile, tiling.key_tile) == (side, side)
