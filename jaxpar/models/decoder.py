"""The decoder-only transformer: GPT-2, Llama, and mixtures of their options."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxpar.config import added, require_positive
from jaxpar.errors import UserError
from jaxpar.experts.block import Experts, MoE, MoEConfig, NoExperts
from jaxpar.experts.router import Report
from jaxpar.models.base import Aux, ModelConfig
from jaxpar.nn.attention import Attention, AttentionConfig, CacheIndex, LayerCache
from jaxpar.nn.dropout import dropout, for_layer
from jaxpar.nn.embed import lookup
from jaxpar.nn.linear import project
from jaxpar.nn.mlp import MLP, MLPConfig
from jaxpar.nn.norm import NormConfig, RMSNorm
from jaxpar.nn.param import fan_in, normal, param
from jaxpar.nn.places import NO_DOCUMENT, Places
from jaxpar.nn.stack import policy, scan, stacked
from jaxpar.partition.notes import note
from jaxpar.partition.precision import wide_type
from jaxpar.partition.sharding import constrain, current_precision
from jaxpar.tree import join


@dataclasses.dataclass(frozen=True)
class DecoderConfig(ModelConfig):
    """A decoder-only transformer with pre-norm residual blocks."""

    any_order = has_cache = True
    vocab_size: int
    """Token ids that the model knows."""
    n_layers: int
    """Blocks, each of attention and an MLP."""
    d_embed: int
    """Width of the embedding and of the residual stream."""
    attention: AttentionConfig
    """Attention of every block; its `window` is replaced by those in `windows`."""
    mlp: MLPConfig
    """Feed-forward part of every block without experts."""
    norm: NormConfig = RMSNorm()
    """Normalisation before attention, before the MLP, and after the last block."""
    max_positions: int = 2048
    """Longest row that it takes, in tokens."""
    learned_positions: bool = False
    """Whether positions have a learned embedding; rotary ones are set in attention."""
    tied: bool = True
    """Whether the unembedding is the transposed embedding."""
    dropout: float = 0.0
    """Probability of zeroing an element of embedding and residual updates; 0 is off."""
    windows: tuple[int, ...] = (0,)
    """Attention windows, in tokens, that the blocks take in turn; 0: whole document."""
    experts: Experts = added(NoExperts())
    """A mixture of experts, MoEConfig, in place of the MLP; NoExperts: an MLP."""
    expert_blocks: tuple[bool, ...] = added((True,))
    """Which blocks have experts, in turn: (False, True) is every other one."""
    remat: str = "none"
    """Rematerialisation: none, full, dots (saves products), save:NOTE+NOTE (these)."""
    vocab_multiple: int = 128
    """The embedding tables are padded to a multiple of this number of ids."""

    def __post_init__(self):
        require_positive(
            self, "vocab_size", "n_layers", "d_embed", "max_positions", "vocab_multiple"
        )
        policy(self.remat)
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"dropout={self.dropout} is a probability, at least 0 and below 1."
            )
        if not self.windows or min(self.windows) < 0:
            raise UserError(
                f"windows={self.windows} must hold at least one number of tokens, each "
                "0 or more; 0 is the whole document."
            )
        if not self.expert_blocks or not any(self.expert_blocks):
            raise UserError(
                f"expert_blocks={self.expert_blocks} must say of at least one block "
                "that it has experts; a model without is experts=NoExperts()."
            )
        if self.n_layers % (n := len(self.pattern)):
            raise UserError(
                f"n_layers={self.n_layers} is not a multiple of the pattern of {n} "
                "blocks that windows and expert_blocks make."
            )

    @property
    def pattern(self) -> tuple[tuple[int, bool], ...]:
        """The window of each block of a pattern, and whether it has experts."""
        has = self.expert_blocks if self.has_experts else (False,)
        n = math.lcm(len(self.windows), len(has))
        return tuple(
            (self.windows[i % len(self.windows)], has[i % len(has)]) for i in range(n)
        )

    @property
    def has_experts(self) -> bool:
        """Whether any block is a mixture of experts, so that the model reports."""
        return isinstance(self.experts, MoEConfig)

    @property
    def padded_vocab(self) -> int:
        """The vocabulary padded to a multiple; the padding is never predicted."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return Decoder(self, rngs)


Reports = dict[str, Report]
"""What routers report, by the paths of their blocks."""


class Cache(NamedTuple):
    """The KV cache of all layers.

    layers: a LayerCache of [L, B, S, K, H]; with a pattern of several blocks a tuple
    with one for each block of the pattern.
    """

    layers: LayerCache | tuple[LayerCache, ...]
    shared: CacheIndex


class Block(nnx.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, config: DecoderConfig, kind: tuple[int, bool], rngs: nnx.Rngs):
        D, (window, has_experts) = config.d_embed, kind
        # GPT-2's scale of what each of 2 L updates adds to the residual stream.
        gain = (2 * config.n_layers) ** -0.5
        attention = dataclasses.replace(config.attention, window=window)
        self.dropout_rate = config.dropout
        self.attn_norm = config.norm.build(embed=D, rngs=rngs)
        self.attn = Attention(attention, D, gain, rngs)
        self.mlp_norm = config.norm.build(embed=D, rngs=rngs)
        self.mlp = (
            MoE(config.experts, D, gain, rngs)
            if has_experts and isinstance(config.experts, MoEConfig)
            else MLP(config.mlp, D, gain, rngs)
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        where: Places,
        keys: jax.Array | None,
        cache: LayerCache | None,
        index: CacheIndex | None,
    ) -> tuple[Float[Array, "B T D"], tuple[LayerCache | None, Reports]]:
        with jax.named_scope("attn"):
            attended, cache = self.attn(self.attn_norm(x), where, cache, index)
        x = x + dropout(attended, keys, "attn", self.dropout_rate)
        reports: Reports = {}
        with jax.named_scope("mlp"):
            if isinstance(self.mlp, MoE):
                is_token = where.segments != NO_DOCUMENT
                y, reports["mlp"] = self.mlp(self.mlp_norm(x), is_token)
            else:
                y = self.mlp(self.mlp_norm(x))
        x = x + dropout(y, keys, "mlp", self.dropout_rate)
        x = note("block/out", constrain(x, "batch", "seq", "embed"))
        return x, (cache, reports)


class Pattern(nnx.Module):
    """One repetition of the pattern: blocks that differ in window or experts."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        for i, kind in enumerate(config.pattern):
            setattr(self, f"block_{i}", Block(config, kind, rngs))
        self.n_blocks = len(config.pattern)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        where: Places,
        keys: jax.Array | None,
        cache: tuple[LayerCache, ...] | None,
        index: CacheIndex | None,
    ) -> tuple[Float[Array, "B T D"], tuple[tuple[LayerCache, ...] | None, Reports]]:
        new_caches, reports = [], Reports()
        for i in range(self.n_blocks):
            block = getattr(self, f"block_{i}")
            block_cache = None if cache is None else cache[i]
            block_keys = for_layer(keys, jnp.int32(i))
            x, aux = block(x, where, block_keys, block_cache, index)
            new_caches.append(aux[0])
            reports |= {join([f"block_{i}", path]): r for path, r in aux[1].items()}
        return x, (None if cache is None else tuple(new_caches), reports)


class Decoder(nnx.Module):
    """Embedding, a scanned stack of blocks, a last norm, and the unembedding."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        V, D, P = config.padded_vocab, config.d_embed, config.max_positions
        self.config = config
        self.embedding = param(rngs, normal(0.02), vocab=V, embed=D)
        if config.learned_positions:
            self.positions = param(rngs, normal(0.02), position=P, embed=D)
        if not config.tied:
            self.unembedding = param(rngs, fan_in("embed"), embed=D, vocab=V)
        self.layers = stacked(
            lambda rngs: (
                Pattern(config, rngs)
                if len(config.pattern) > 1
                else Block(config, next(iter(config.pattern)), rngs)
            ),
            config.n_layers // len(config.pattern),
            rngs,
        )
        self.norm = config.norm.build(embed=D, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        where: Places,
        keys: jax.Array | None = None,
        cache: Cache | None = None,
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """Activations after the last norm; keys [B] switch dropout on."""
        index = None
        if cache is not None:
            index = _with_places(cache.shared, where)
        with jax.named_scope("embed"):
            x = self._embed(tokens, where, keys)

        def run(block, x, layer, layer_cache, where, keys, index):
            return block(x, where, for_layer(keys, layer), layer_cache, index)

        x, (layer_caches, reports) = scan(
            run, self.layers, x, where, keys, index,
            carried=None if cache is None else cache.layers, remat=self.config.remat,
        )  # fmt: skip
        x = note("norm/out", self.norm(x))
        if cache is None or index is None:
            return x, Aux(
                reports={join(["layers", path]): r for path, r in reports.items()}
            )
        index = index._replace(filled=index.filled + tokens.shape[1])
        return x, Aux(cache=Cache(layer_caches, index))

    def _embed(
        self, tokens: jax.Array, where: Places, keys: jax.Array | None
    ) -> jax.Array:
        x = lookup(self.embedding, tokens)
        if self.config.learned_positions:
            x = x + lookup(self.positions, where.positions)
        x = constrain(x, "batch", "seq", "embed")
        return note("embed/out", dropout(x, keys, "embed", self.config.dropout))

    def unembed(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits in no less than float32; those of padding ids are -inf."""
        w = self.embedding[...].T if self.config.tied else self.unembedding[...]
        names, dtype = ("embed", "vocab"), wide_type(current_precision().compute)
        (logits,) = project(x, ("batch", "seq"), [w], [names], result=dtype)
        logits = constrain(logits, "batch", "seq", "vocab")
        is_token = jnp.arange(logits.shape[-1]) < self.config.vocab_size
        return jnp.where(is_token[None, None], logits, -jnp.inf)

    def cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `length` tokens of `batch` rows."""
        config = self.config
        K, H = config.attention.n_kv_heads, config.attention.head_dim
        n = config.n_layers // len(config.pattern)
        dtype = jnp.dtype(current_precision().compute)

        def zeros():
            x = jnp.zeros((n, batch, length, K, H), dtype)
            return constrain(x, "layers", "batch", "seq", "kv_heads", "head_dim")

        # An array for each of k and v: one buffer cannot be donated twice.
        blocks = tuple(LayerCache(zeros(), zeros()) for _ in config.pattern)
        where = Places(
            jnp.zeros((batch, length), jnp.int32),
            jnp.full((batch, length), NO_DOCUMENT, jnp.int32),
        )
        return Cache(
            blocks if len(blocks) > 1 else next(iter(blocks)),
            CacheIndex(where, jnp.zeros((), jnp.int32)),
        )


def _with_places(index: CacheIndex, where: Places) -> CacheIndex:
    """The index of a cache with the places of new tokens after the filled slots."""

    def write(old, new):
        return jax.lax.dynamic_update_slice_in_dim(
            old, new.astype(old.dtype), index.filled, axis=1
        )

    return CacheIndex(Places(*map(write, index.where, where)), index.filled)
