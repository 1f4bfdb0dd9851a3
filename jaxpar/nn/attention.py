"""Causal grouped-query attention within documents, with an optional KV cache."""

import dataclasses
from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxpar.config import added, require_positive
from jaxpar.errors import UserError
from jaxpar.nn.context_parallel import over_seq
from jaxpar.nn.flash_attention import FlashAttention
from jaxpar.nn.kernel_table import FUSED, kernel_for, why_tiles
from jaxpar.nn.linear import add_bias, dense, dense_each
from jaxpar.nn.norm import NoNorm, NormConfig
from jaxpar.nn.param import constant, fan_in, param
from jaxpar.nn.places import Places
from jaxpar.nn.rope import rotate
from jaxpar.nn.score_bias import NoScoreBias, ScoreBias
from jaxpar.partition.layout import Layout
from jaxpar.partition.notes import note
from jaxpar.partition.precision import Precision
from jaxpar.partition.sharding import constrain


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Sizes and form of attention."""

    n_heads: int
    """Heads of the queries."""
    n_kv_heads: int
    """Heads of keys and values, each shared by n_heads / n_kv_heads query heads."""
    head_dim: int
    """Width of a head."""
    bias: bool = False
    """Whether the four projections have a bias."""
    qk_norm: NormConfig = NoNorm()
    """Normalisation of each head's queries and keys, before they are rotated."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies; 0 switches rotary positions off."""
    window: int = 0
    """Tokens that a query sees, itself included; 0 is the whole document."""
    score_bias: ScoreBias = added(NoScoreBias())
    """What is added to the scores: nothing, or Alibi."""
    soft_cap: float = added(0.0)
    """Scores s become soft_cap x tanh(s / soft_cap) before a bias; 0: they stay."""

    def __post_init__(self):
        require_positive(self, "n_heads", "n_kv_heads", "head_dim")
        if self.window < 0:
            raise UserError(
                f"window={self.window} must be 0 or more; 0 is the whole document."
            )
        if not 0 <= self.soft_cap < float("inf"):
            raise UserError(f"soft_cap={self.soft_cap} must be 0 (none) or more.")
        if self.n_heads % self.n_kv_heads:
            raise UserError(
                f"n_heads={self.n_heads} is not a multiple of n_kv_heads="
                f"{self.n_kv_heads}."
            )
        if self.rope_theta and self.head_dim % 2:
            raise UserError(f"head_dim={self.head_dim} must be even to be rotated.")


class LayerCache(NamedTuple):
    """One layer's cached keys and values [B, S, K, H]."""

    k: jax.Array
    v: jax.Array


class CacheIndex(NamedTuple):
    """What the layers' caches share: places [B, S], and how many slots are filled."""

    where: Places
    filled: jax.Array


class Attention(nnx.Module):
    """Projections to queries, keys and values, attention, and the output projection.

    gain scales the standard deviation of the output projection's initial values.
    """

    def __init__(
        self, config: AttentionConfig, d_embed: int, gain: float, rngs: nnx.Rngs
    ):
        N, K, H, D = config.n_heads, config.n_kv_heads, config.head_dim, d_embed
        self.config = config
        from_embed = fan_in("embed")
        self.w_q = param(rngs, from_embed, embed=D, heads=N, head_dim=H)
        self.w_k = param(rngs, from_embed, embed=D, kv_heads=K, head_dim=H)
        self.w_v = param(rngs, from_embed, embed=D, kv_heads=K, head_dim=H)
        from_heads = fan_in("heads", "head_dim", gain=gain)
        self.w_o = param(rngs, from_heads, heads=N, head_dim=H, embed=D)
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
        x: Float[Array, "B T D"],
        where: Places,
        cache: LayerCache | None = None,
        index: CacheIndex | None = None,
    ) -> tuple[Float[Array, "B T D"], LayerCache | None]:
        """The output, and the cache with the keys and values of these tokens.

        index: places of all cached tokens, in which those of x are written already;
        `filled` is the number of tokens before them.
        """
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
        q_BTNH = self._normed_and_rotated(q_BTNH, self.q_norm, where, "heads")
        k_BTKH = self._normed_and_rotated(k_BTKH, self.k_norm, where, "kv_heads")
        where_k = None
        if cache is not None and index is not None:
            cache = LayerCache(
                _write(cache.k, k_BTKH, index.filled),
                _write(cache.v, v_BTKH, index.filled),
            )
            k_BTKH, v_BTKH, where_k = cache.k, cache.v, index.where
        kernel = kernel_for(_tiles(config), q_BTNH, own_keys=where_k is None)
        mixed_BTNH = over_seq(kernel, q_BTNH, k_BTKH, v_BTKH, where, where_k)
        out = dense("BTNH,NHD->BTD", note("attn/mixed", mixed_BTNH), self.w_o)
        if config.bias:
            out = add_bias(out, self.b_o)
        return note("attn/out", constrain(out, "batch", "seq", "embed")), cache

    def _normed_and_rotated(
        self, x: jax.Array, norm: nnx.Module, where: Places, heads: str
    ) -> jax.Array:
        """Queries or keys as they are compared; `heads` names their axis of heads."""
        x = norm(x)
        if self.config.rope_theta:
            x = rotate(x, where.positions, self.config.rope_theta)
        return constrain(x, "batch", "seq", heads, "head_dim")


def attention_said(
    config: AttentionConfig, layout: Layout, platform: str, precision: Precision
) -> str:
    """Which kernel attention runs in training; the reason where it is the tiles.

    platform: cpu, gpu or tpu, as Placed has it.
    """
    why = why_tiles(_tiles(config), layout, platform, precision, config.head_dim)
    said = f"tiles ({why})" if why else FUSED[platform].name
    return f"attention: {said}"


def _tiles(config: AttentionConfig) -> FlashAttention:
    """Attention as configured, by the kernel that takes everything."""
    return FlashAttention(
        config.window,
        soft_cap=config.soft_cap,
        bias=config.score_bias.build(config.n_heads),
    )


def _write(cached: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
    """The cached array with new tokens from slot `start` on."""
    new = new.astype(cached.dtype)
    return jax.lax.dynamic_update_slice_in_dim(cached, new, start, axis=1)
