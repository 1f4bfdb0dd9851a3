"""Causal grouped-query attention that stays inside a document."""

import dataclasses
from typing import NamedTuple

import jax
from flax import nnx

from jaxpar.errors import UserError
from jaxpar.nn.context_parallel import over_seq
from jaxpar.nn.flash_attention import FlashAttention
from jaxpar.nn.linear import add_bias, dense, dense_each
from jaxpar.nn.norm import NoNorm, NormConfig
from jaxpar.nn.param import constant, fan_in, param
from jaxpar.nn.places import Places
from jaxpar.nn.rope import rotate
from jaxpar.partition.notes import note
from jaxpar.partition.sharding import constrain


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Heads and what is done to queries and keys.

    rope_theta 0 leaves positions to the embedding; window 0 sees the whole document.
    """

    n_heads: int
    n_kv_heads: int
    head_dim: int
    bias: bool = False
    qk_norm: NormConfig = NoNorm()
    rope_theta: float = 10_000.0
    window: int = 0

    def __post_init__(self):
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"n_heads={self.n_heads} is no multiple of n_kv_heads="
                f"{self.n_kv_heads}."
            )
        if self.rope_theta and self.head_dim % 2:
            raise UserError(f"head_dim={self.head_dim} must be even to be rotated.")


class LayerCache(NamedTuple):
    """Keys and values [B, S, K, H] that a layer remembers."""

    k: jax.Array
    v: jax.Array


class CacheIndex(NamedTuple):
    """What all layers of a cache share: places [B, S] and how much is filled."""

    where: Places
    filled: jax.Array


class Attention(nnx.Module):
    """Projections, rotation, attention, projection."""

    def __init__(self, config: AttentionConfig, d_embed: int, gain: float, rngs):
        N, K, H, D = config.n_heads, config.n_kv_heads, config.head_dim, d_embed
        self.config = config
        into = fan_in("embed")
        self.w_q = param(rngs, into, embed=D, heads=N, head_dim=H)
        self.w_k = param(rngs, into, embed=D, kv_heads=K, head_dim=H)
        self.w_v = param(rngs, into, embed=D, kv_heads=K, head_dim=H)
        out = fan_in("heads", "head_dim", gain=gain)
        self.w_o = param(rngs, out, heads=N, head_dim=H, embed=D)
        self.q_norm = config.qk_norm.build(head_dim=H, rngs=rngs)
        self.k_norm = config.qk_norm.build(head_dim=H, rngs=rngs)
        if config.bias:
            zero = constant(0.0)
            self.b_q = param(rngs, zero, heads=N, head_dim=H)
            self.b_k = param(rngs, zero, kv_heads=K, head_dim=H)
            self.b_v = param(rngs, zero, kv_heads=K, head_dim=H)
            self.b_o = param(rngs, zero, embed=D)

    def __call__(
        self,
        x: jax.Array,
        where: Places,
        cache: LayerCache | None = None,
        remembered: CacheIndex | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        config = self.config
        q_BTNH, k_BTKH, v_BTKH = dense_each(
            x,
            ("BTD,DNH->BTNH", self.w_q),
            ("BTD,DKH->BTKH", self.w_k),
            ("BTD,DKH->BTKH", self.w_v),
        )
        if config.bias:
            q_BTNH = add_bias(q_BTNH, self.b_q)
            k_BTKH = add_bias(k_BTKH, self.b_k)
            v_BTKH = add_bias(v_BTKH, self.b_v)
        q_BTNH = self._by_heads(q_BTNH, self.q_norm, where, "heads")
        k_BTKH = self._by_heads(k_BTKH, self.k_norm, where, "kv_heads")
        where_k = None
        if cache is not None and remembered is not None:
            cache = LayerCache(
                _written(cache.k, k_BTKH, remembered.filled),
                _written(cache.v, v_BTKH, remembered.filled),
            )
            k_BTKH, v_BTKH, where_k = cache.k, cache.v, remembered.where
        kernel = FlashAttention(config.window)
        mixed_BTNH = over_seq(kernel, q_BTNH, k_BTKH, v_BTKH, where, where_k)
        out = dense("BTNH,NHD->BTD", note("attn/mixed", mixed_BTNH), self.w_o)
        if config.bias:
            out = add_bias(out, self.b_o)
        return note("attn/out", constrain(out, "batch", "seq", "embed")), cache

    def _by_heads(self, x, norm, where: Places, heads: str) -> jax.Array:
        """Queries or keys, normed and rotated, and still split by heads."""
        x = norm(x)
        if self.config.rope_theta:
            x = rotate(x, where.positions, self.config.rope_theta)
        return constrain(x, "batch", "seq", heads, "head_dim")


def _written(old: jax.Array, new: jax.Array, at: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at, axis=1)
