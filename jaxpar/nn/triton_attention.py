"""Attention on NVIDIA GPUs: JAX's fused Pallas (Triton) kernels, given segments."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpar.nn.attention_kernel import Gradients, Partial
from jaxpar.nn.places import Places
from jaxpar.nn.tiling import PADDED_KEY, padded

# Tensor cores multiply no smaller blocks.
LEAST = 16
# The kernels' logsumexp is one of powers of 2.
LOG_2 = math.log(2)


class Blocks(NamedTuple):
    """Tokens that one program of a kernel holds at once; powers of 2, at least 16."""

    queries: int
    """Queries of a forward program."""
    keys: int
    """Keys that it takes at a time."""
    long: int
    """Keys of a backward program, and queries of one."""
    short: int
    """Queries that the former takes at a time, and keys that the latter does."""


# With these the compiler for an H100 keeps all in registers; the second are for heads
# wider than 128, whose backward pass spills 120 bytes of them.
BLOCKS, BLOCKS_OF_WIDE_HEADS = Blocks(128, 64, 64, 64), Blocks(64, 64, 32, 32)


@dataclasses.dataclass(frozen=True)
class TritonAttention:
    """Causal attention that masks by a token's index in its row, and by segments.

    It ignores positions, so rows must be whole, in order, and hold all keys. Rows
    are filled up to whole blocks with a segment of their own. Products are in the type
    of q, k and v; their sums and the softmax in float32.
    """

    blocks: Blocks | None = None
    """How much of a row a program holds; None: as the width of a head has it."""
    interpret: bool = False
    """Whether the kernels are interpreted, operation by operation, as on a CPU."""

    def forward(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        where: Places,
        where_k: Places,
        heads: Int[Array, "N"],
    ) -> Partial:
        """Attention over the row's own keys, in the type of q."""
        (_, T, _, H), blocks = q.shape, self._blocks(q)
        segments = padded(where.segments, blocks.queries, PADDED_KEY)
        q, k, v = (_filled(x, blocks.queries) for x in (q, k, v))
        call = _Kernels(self.interpret, blocks, H**-0.5)
        out, lse = call.forward(q, k, v, segments)
        return Partial(out[:, :T, :, :H], LOG_2 * lse.swapaxes(1, 2)[:, :T])

    def backward(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B T K H"],
        v: Float[Array, "B T K H"],
        where: Places,
        where_k: Places,
        heads: Int[Array, "N"],
        result: Partial,
        grad: Float[Array, "B T N H"],
    ) -> Gradients:
        """Gradients; those of keys and values are summed over heads in float32."""
        (B, T, N, H), K, blocks = q.shape, k.shape[2], self._blocks(q)
        inner = jnp.einsum(
            "btnh,btnh->bnt", result.out, grad, preferred_element_type=jnp.float32
        )
        lse = result.lse.swapaxes(1, 2) / LOG_2
        more = [(0, 0), (0, 0), (0, -T % blocks.long)]
        lse, inner = (jnp.pad(x, more) for x in (lse, inner))
        segments = padded(where.segments, blocks.long, PADDED_KEY)
        grad = grad.astype(v.dtype)
        q, k, v, grad = (_filled(x, blocks.long) for x in (q, k, v, grad))
        call = _Kernels(self.interpret, blocks, H**-0.5)
        dq, dk, dv = call.backward(q, k, v, segments, grad, lse, inner)
        dq, dk, dv = (x[:, :T, :, :H] for x in (dq, dk, dv))
        if N != K:
            dk, dv = (x.reshape(B, T, K, N // K, H).sum(axis=3) for x in (dk, dv))
        return Gradients(dq, dk, dv)

    def _blocks(self, q: jax.Array) -> Blocks:
        """The blocks of these queries, no longer than their rows."""
        wide = BLOCKS if q.shape[-1] <= 128 else BLOCKS_OF_WIDE_HEADS
        most = _power_of_2(q.shape[1])
        return Blocks(*(min(size, most) for size in self.blocks or wide))


@dataclasses.dataclass(frozen=True)
class _Kernels:
    """JAX's two kernels, over rows of whole blocks."""

    interpret: bool
    blocks: Blocks
    scale: float

    def forward(self, q, k, v, segments) -> tuple[jax.Array, jax.Array]:
        """The output [B, T, N, H], and the logarithm to base 2 [B, N, T]."""
        from jax.experimental.pallas.ops.gpu import attention

        (B, T, N, H), size = q.shape, self.blocks.queries
        spec = functools.partial(_spec, lambda i, b, n: (b, n, i), _power_of_2(H))
        keys = spec("btnh", T, moves=False, shared=N // k.shape[2])
        return self._run(
            attention.mha_forward_kernel,
            H,
            {"block_q": size, "block_k": self.blocks.keys},
            grid=(T // size, B, N),
            in_specs=[spec("btnh", size), keys, keys, spec("bt", T, moves=False)],
            out_specs=[spec("btnh", size), spec("bnt", size)],
            out_shape=[_like(q), jax.ShapeDtypeStruct((B, N, T), jnp.float32)],
        )(q, k, v, segments)

    def backward(self, q, k, v, segments, grad, lse, inner) -> tuple[jax.Array, ...]:
        """Gradients [B, T, N, H] of q, k and v, the latter two of each query head."""
        from jax.experimental.pallas.ops.gpu import attention

        (B, T, N, H), (_, _, long, short) = q.shape, self.blocks
        spec = functools.partial(_spec, lambda b, n, i: (b, n, i), _power_of_2(H))
        keys = spec("btnh", T, moves=False, shared=N // k.shape[2])
        queries, scalars = spec("btnh", T, moves=False), spec("bnt", T, moves=False)
        dkv = _like(q) if k.shape[2] == N else _like(q, jnp.float32)
        return self._run(
            attention.mha_backward_kernel,
            H,
            {"block_q_dkv": short, "block_kv_dkv": long}
            | {"block_q_dq": long, "block_kv_dq": short},
            grid=(B, N, T // long),
            in_specs=[queries, keys, keys, spec("bt", T, moves=False), None]
            + [queries, scalars, scalars],
            out_specs=[spec("btnh", long)] * 3,
            out_shape=[_like(q), dkv, dkv],
        )(q, k, v, segments, None, grad, lse, inner)  # It does not read the output.

    def _run(self, kernel: Callable, H: int, blocks: dict[str, int], **how: Any) -> Any:
        from jax.experimental import pallas
        from jax.experimental.pallas import triton

        run = functools.partial(
            kernel, sm_scale=self.scale, causal=True, head_dim=H, **blocks
        )
        params = triton.CompilerParams(num_warps=4 if H <= 64 else 8, num_stages=2)
        return pallas.pallas_call(
            run, compiler_params=params, interpret=self.interpret, **how
        )


def _spec(
    at: Callable,
    width: int,
    axes: str,
    size: int,
    *,
    moves: bool = True,
    shared: int = 1,
) -> Any:
    """Which block of an array a program gets: `size` tokens of one row and head.

    at: numbers in the grid to (row, head, block). moves: whether it is another one for
    each block. shared: heads of queries that share one of this array.
    """
    from jax.experimental import pallas

    def index(*grid):
        row, head, block = at(*grid)
        head = jax.lax.div(head, shared)
        places = {"b": row, "t": block if moves else 0, "n": head, "h": 0}
        return tuple(places[axis] for axis in axes)

    sizes = {"b": None, "t": size, "n": None, "h": width}
    return pallas.BlockSpec(tuple(sizes[axis] for axis in axes), index)


def _power_of_2(n: int) -> int:
    """The smallest power of 2 that is no less than n and that a program can hold."""
    return max(LEAST, 1 << (n - 1).bit_length())


def _filled(x: Float[Array, "B T N H"], size: int) -> Float[Array, "B T2 N H2"]:
    """Zeros behind the tokens up to whole blocks, and behind features up to LEAST."""
    more = max(0, LEAST - x.shape[-1])
    return jnp.pad(padded(x, size), [(0, 0)] * 3 + [(0, more)])


def _like(x: jax.Array, dtype: Any = None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)
