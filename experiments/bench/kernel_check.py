"""An attention kernel beside the tiles, on packed rows, on the device that is there."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.nn.attention_kernel import Kernel
from jaxpar.nn.flash_attention import FlashAttention
from jaxpar.nn.places import NO_DOCUMENT, Places
from jaxpar.partition.layout import Layout
from jaxpar.partition.sharding import use_layout

TILES = FlashAttention()
# Largest error, relative to the largest element of the tiles' result in float32.
MOST = {
    "float32": 3e-6,
    "bfloat16": 2 * float(jnp.finfo(jnp.bfloat16).eps),
    "float16": 2 * float(jnp.finfo(jnp.float16).eps),
}


def packed_rows(B: int, T: int, *, part: int = 8) -> Places:
    """Places of rows of several documents, of which the last 1/part is padding.

    What padding computes is nobody's concern, and differs: tiles go by its positions.
    """
    random = np.random.default_rng(1)
    starts = random.random((B, T)) < 4 / T
    starts[:, 0] = True
    segments = np.cumsum(starts, axis=1)
    begin = np.maximum.accumulate(np.where(starts, np.arange(T), 0), axis=1)
    positions = np.arange(T) - begin
    segments[:, T - T // part :] = NO_DOCUMENT
    return Places(*(jnp.asarray(x, jnp.int32) for x in (positions, segments)))


def with_wrong_segment(where: Places) -> Places:
    """The first token of the first row's second document counts as one of the first."""
    begins = int(jnp.flatnonzero(jnp.diff(where.segments[0]))[0]) + 1
    wrong = where.segments.at[0, begins].set(where.segments[0, 0])
    return Places(where.positions, wrong)


def random_arrays(
    B: int, T: int, N: int, K: int, H: int, dtype: str
) -> list[jax.Array]:
    """Queries, keys, values, and the gradient of the result, which padding lacks."""
    random = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)
    *qkv, grad = (jnp.asarray(random.normal(size=shape), dtype) for shape in shapes)
    return [*qkv, grad.at[:, T - T // 8 :].set(0)]


def both_passes(
    kernel: Kernel, where: Places, arrays: list[jax.Array]
) -> list[jax.Array]:
    """Output and logsumexp of tokens that are no padding, and the three gradients."""
    device = Layout.parse("data=1").on(jax.devices()[:1])

    @jax.jit
    def run(q, k, v, grad, where):
        heads = jnp.arange(q.shape[2])
        with use_layout(device), jax.default_matmul_precision("highest"):
            result = kernel.forward(q, k, v, where, where, heads)
            grads = kernel.backward(q, k, v, where, where, heads, result, grad)
        n = q.shape[1] - q.shape[1] // 8
        return result.out[:, :n], result.lse[:, :n], *grads

    return [x.astype(jnp.float32) for x in run(*arrays, where)]


def largest_error(
    kernel: Kernel,
    arrays: list[jax.Array],
    where: Places,
    *,
    seen: Places | None = None,
    tiles: FlashAttention = TILES,
) -> float:
    """Of all five results, relative to the largest element of each in the tiles'.

    seen: places that the kernel is given instead of those that the tiles are.
    """
    want = both_passes(tiles, where, [x.astype(jnp.float32) for x in arrays])
    got = both_passes(kernel, seen or where, arrays)
    pairs = zip(want, got, strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.abs(a).max()) for a, b in pairs)
