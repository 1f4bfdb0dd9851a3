"""The kernels of accelerators compile for them, where none is."""

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import targets
from jaxpar.nn.context_parallel import over_seq
from jaxpar.nn.flash_attention import FlashAttention
from jaxpar.nn.kernel_table import kernel_for
from jaxpar.nn.places import Places
from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.sharding import use_layout

MIB = 2**20
cuda = pytest.mark.skipif(not targets.has_cuda(), reason=targets.CUDA_MISSING)
tpu = pytest.mark.skipif(not targets.has_tpu(), reason=targets.TPU_MISSING)


@pytest.fixture(autouse=True)
def ranks_may_differ():
    """JAX's own kernels add arrays of different ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


def temporaries(placed: Placed, sizes, *, tiled=False, dtype=jnp.bfloat16):
    """MiB that each device needs for both passes of attention, beside its arguments."""
    B, T, N, K, H = sizes

    def shape(of, dtype, *names):
        return jax.ShapeDtypeStruct(of, dtype, sharding=placed.sharding(names))

    B *= placed.layout.n_devices
    q = shape((B, T, N, H), dtype, "batch", "seq", "heads", "head_dim")
    k = shape((B, T, K, H), dtype, "batch", "seq", "kv_heads", "head_dim")
    where = Places(*[shape((B, T), jnp.int32, "batch", "seq")] * 2)

    def both(q, k, v, grad, where):
        def attend(q, k, v):
            tiles = FlashAttention()
            kernel = kernel_for(tiles, q, own_keys=not tiled)
            assert (kernel is tiles) == tiled
            return over_seq(kernel, q, k, v, where)

        with use_layout(placed):
            out, backward = jax.vjp(attend, q, k, v)
            return out, backward(grad)

    compiled = jax.jit(both).lower(q, k, k, q, where).compile()
    return compiled.memory_analysis().temp_size_in_bytes / MIB


SIZES = [
    (2, 2048, 12, 12, 64),
    (2, 400, 4, 2, 80),
    (1, 256, 8, 2, 256),
    (2, 20, 2, 1, 8),
]


@cuda
def test_a_gpus_kernel_needs_next_to_no_memory():
    placed = Layout.parse("data=2").on(targets.h100s(2))
    assert placed.platform == "gpu"
    assert temporaries(placed, (2, 2048, 16, 16, 128)) < 8
    assert temporaries(placed, (2, 2048, 16, 16, 128), tiled=True) > 500


@cuda
@pytest.mark.parametrize("text", ["data=2", "tensor=2", "ulysses=2"])
@pytest.mark.parametrize("sizes", SIZES)
def test_a_gpus_kernel_compiles_for_every_form(sizes, text):
    B, T, N, K, H = sizes
    if K == 1 and text != "data=2":
        K = 2
    assert temporaries(Layout.parse(text).on(targets.h100s(2)), (B, T, N, K, H)) < 99


@tpu
def test_a_tpus_kernel_needs_little_memory():
    placed = Layout.parse("data=4").on(targets.tpus())
    assert placed.platform == "tpu"
    assert temporaries(placed, (2, 2048, 16, 16, 128)) < 100
    assert temporaries(placed, (2, 2048, 16, 16, 128), tiled=True) > 500


@tpu
@pytest.mark.parametrize("sizes", SIZES)
def test_a_tpus_kernel_compiles_for_every_form(sizes):
    assert temporaries(Layout.parse("data=4").on(targets.tpus()), sizes) < 199
