"""Attention on TPUs: JAX's splash attention, given segments."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpar.nn.attention_kernel import Gradients, Partial
from jaxpar.nn.places import Places
from jaxpar.nn.tiling import PADDED_KEY, padded

# Rows are padded to a multiple of the last; the block is the first that divides them.
BLOCKS = (512, 256, 128)


@dataclasses.dataclass(frozen=True)
class SplashAttention:
    """Causal attention that masks by a token's index in its row, and by segments.

    It ignores positions, so rows must be whole, in order, and hold all keys. Rows
    are filled up to whole blocks with a segment of their own. Queries are scaled before
    they are multiplied, in their own type.
    """

    window: int = 0
    """Tokens that a query sees, itself included; 0 is the whole document."""
    soft_cap: float = 0.0
    """Scaled products s become soft_cap x tanh(s / soft_cap); 0: they stay."""
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
        T, scale = q.shape[1], q.shape[-1] ** -0.5
        kernel = self._kernel(q, save_residuals=True)
        q, k, v = map(_by_heads, (q * scale, k, v))
        with _products_of(q):
            out, (lse,) = jax.vmap(kernel)(q, k, v, _segments(where))
        return Partial(out.swapaxes(1, 2)[:, :T], lse.swapaxes(1, 2)[:, :T])

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
        """Gradients, in the types of q, k and v."""
        from jax.experimental.pallas.ops.tpu.splash_attention import (
            splash_attention_kernel as splash,
        )

        T, scale = q.shape[1], q.shape[-1] ** -0.5
        kernel = self._kernel(q, save_residuals=False)

        def gradients(q, k, v, segments, out, lse, grad):
            # The rule of its own derivative; it has no other name.
            masks = kernel.dq_mask_info, kernel.dkv_mask_info
            found = (q, k, v, segments, None, out, lse, *masks)
            *_, dq, dk, dv, _, _ = splash._splash_attention_bwd(
                **kernel.kwargs, res=found, do=grad
            )
            return dq, dk, dv

        arrays = (q * scale, k, v, result.out, grad.astype(v.dtype))
        q, k, v, out, grad = map(_by_heads, arrays)
        lse = _by_heads(result.lse[..., None])[..., 0]
        with _products_of(q):
            grads = jax.vmap(gradients)(q, k, v, _segments(where), out, lse, grad)
        dq, dk, dv = (x.swapaxes(1, 2)[:, :T] for x in grads)
        return Gradients(dq * scale, dk, dv)

    def _kernel(self, q: jax.Array, *, save_residuals: bool):
        """JAX's kernel for one row of all heads."""
        from jax.experimental.pallas.ops.tpu import splash_attention as splash

        T, N = padded(q, BLOCKS[-1]).shape[1:3]
        size = next(size for size in BLOCKS if T % size == 0)
        uses = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute")
        blocks: Any = {f"block_{use}": size for use in (*uses, "q_dq", "kv_dq")}
        mask = splash.CausalMask((T, T))
        if self.window:
            mask = splash.LocalMask((T, T), (self.window - 1, 0), 0)
        return splash.make_splash_mha(
            splash.MultiHeadMask([mask] * N),
            head_shards=1,
            q_seq_shards=1,
            block_sizes=splash.BlockSizes(**blocks),
            save_residuals=save_residuals,
            attn_logits_soft_cap=self.soft_cap or None,
            interpret=self.interpret,
        )


def _by_heads(x: Float[Array, "B T N H"]) -> Float[Array, "B N T2 H"]:
    """Heads before tokens, of which there are whole blocks."""
    return padded(x, BLOCKS[-1]).swapaxes(1, 2)


def _products_of(q: jax.Array) -> contextlib.AbstractContextManager[Any]:
    """In force while a kernel is traced, which multiplies weights in float32.

    Beside narrow queries these products need be no better than the others.
    """
    if q.dtype == jnp.float32:
        return contextlib.nullcontext()
    return jax.default_matmul_precision("default")


def _segments(where: Places):
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    segments = padded(where.segments, BLOCKS[-1], PADDED_KEY)
    return splash.SegmentIds(segments, segments)
