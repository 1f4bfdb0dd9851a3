"""The decoder: GPT-2's form, Llama's form, and what lies between."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar.errors import UserError
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
from jaxpar.partition.precision import wide
from jaxpar.partition.sharding import constrain, current_precision


@dataclasses.dataclass(frozen=True)
class DecoderConfig(ModelConfig):
    """A decoder; learned positions where `learned_positions`, else rotary ones.

    windows: attention windows of the repeating pattern of blocks (0: everything).
    remat: none, full, dots, or save:NOTE+NOTE.
    """

    vocab_size: int
    n_layers: int
    d_embed: int
    attention: AttentionConfig
    mlp: MLPConfig
    norm: NormConfig = RMSNorm()
    max_positions: int = 2048
    learned_positions: bool = False
    tied: bool = True
    dropout: float = 0.0
    windows: tuple[int, ...] = (0,)
    remat: str = "none"
    vocab_multiple: int = 128

    def __post_init__(self):
        policy(self.remat)
        if self.n_layers % len(self.windows):
            raise UserError(
                f"n_layers={self.n_layers} is no multiple of the pattern of "
                f"{len(self.windows)} windows."
            )

    @property
    def padded_vocab(self) -> int:
        """The vocabulary filled up to a multiple; the padding is never predicted."""
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return Decoder(self, rngs)


class Cache(NamedTuple):
    """Keys and values of all layers [L, B, S, K, H], their places, how many."""

    layers: Any
    shared: CacheIndex


class Block(nnx.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, config: DecoderConfig, window: int, rngs: nnx.Rngs):
        D = config.d_embed
        # GPT-2's scaling of what is added to the residual stream, 1 / sqrt(2 L).
        gain = (2 * config.n_layers) ** -0.5
        attention = dataclasses.replace(config.attention, window=window)
        self.rate = config.dropout
        self.attn_norm = config.norm.build(embed=D, rngs=rngs)
        self.attn = Attention(attention, D, gain, rngs)
        self.mlp_norm = config.norm.build(embed=D, rngs=rngs)
        self.mlp = MLP(config.mlp, D, gain, rngs)

    def __call__(self, x, where: Places, keys, cache, shared):
        with jax.named_scope("attn"):
            mixed, cache = self.attn(self.attn_norm(x), where, cache, shared)
        x = x + dropout(mixed, keys, "attn", self.rate)
        with jax.named_scope("mlp"):
            y = self.mlp(self.mlp_norm(x))
        x = x + dropout(y, keys, "mlp", self.rate)
        return note("block/out", constrain(x, "batch", "seq", "embed")), cache


class Pattern(nnx.Module):
    """One repetition of the pattern: blocks that differ in their window."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        for i, window in enumerate(config.windows):
            setattr(self, f"block_{i}", Block(config, window, rngs))
        self.n_blocks = len(config.windows)

    def __call__(self, x, where: Places, keys, cache, shared):
        new = []
        for i in range(self.n_blocks):
            own = None if cache is None else cache[i]
            block = getattr(self, f"block_{i}")
            x, own = block(x, where, for_layer(keys, jnp.int32(i)), own, shared)
            new.append(own)
        return x, None if cache is None else tuple(new)


class Decoder(nnx.Module):
    """Embedding, a scanned stack of blocks, a last norm, logits."""

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
                if len(config.windows) > 1
                else Block(config, next(iter(config.windows)), rngs)
            ),
            config.n_layers // len(config.windows),
            rngs,
        )
        self.norm = config.norm.build(embed=D, rngs=rngs)

    def __call__(
        self, tokens: jax.Array, where: Places, keys=None, cache: Cache | None = None
    ) -> tuple[jax.Array, Aux]:
        """Activations [B, T, D] of tokens [B, T]; keys [B] switch dropout on."""
        shared = None
        if cache is not None:
            shared = _remember(cache.shared, where)
        with jax.named_scope("embed"):
            x = self._embed(tokens, where, keys)

        def run(block, x, layer, own, where, keys, shared):
            return block(x, where, for_layer(keys, layer), own, shared)

        own = None if cache is None else cache.layers
        x, new = scan(
            run, self.layers, x, where, keys, shared,
            carried=own, remat=self.config.remat,
        )  # fmt: skip
        x = note("norm/out", self.norm(x))
        if cache is None or shared is None:
            return x, Aux()
        filled = shared._replace(filled=shared.filled + tokens.shape[1])
        return x, Aux(cache=Cache(new, filled))

    def _embed(self, tokens, where: Places, keys) -> jax.Array:
        x = lookup(self.embedding, tokens)
        if self.config.learned_positions:
            x = x + lookup(self.positions, where.positions)
        x = constrain(x, "batch", "seq", "embed")
        return note("embed/out", dropout(x, keys, "embed", self.config.dropout))

    def unembed(self, x: jax.Array) -> jax.Array:
        """Logits [B, T, V], not narrower than single precision; padding is -inf."""
        w = self.embedding[...].T if self.config.tied else self.unembedding[...]
        (logits,) = project(x, ("batch", "seq"), [w], [("embed", "vocab")])
        logits = constrain(wide(logits), "batch", "seq", "vocab")
        real = jnp.arange(logits.shape[-1]) < self.config.vocab_size
        return jnp.where(real[None, None], logits, -jnp.inf)

    def cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `length` tokens of `batch` rows."""
        config = self.config
        K, H = config.attention.n_kv_heads, config.attention.head_dim
        n = config.n_layers // len(config.windows)
        kind = jnp.dtype(current_precision().compute)

        def empty():
            # Two arrays: one buffer cannot be donated twice.
            return LayerCache(
                *(
                    constrain(
                        jnp.zeros((n, batch, length, K, H), kind),
                        "layers", "batch", "seq", "kv_heads", "head_dim",
                    )
                    for _ in range(2)
                )
            )  # fmt: skip

        blocks = tuple(empty() for _ in config.windows)
        where = Places(
            jnp.zeros((batch, length), jnp.int32),
            jnp.full((batch, length), NO_DOCUMENT, jnp.int32),
        )
        return Cache(
            blocks if len(blocks) > 1 else next(iter(blocks)),
            CacheIndex(where, jnp.zeros((), jnp.int32)),
        )


def _remember(shared: CacheIndex, where: Places) -> CacheIndex:
    """The places of a cache with those of the new tokens written behind."""

    def write(old, new):
        return jax.lax.dynamic_update_slice_in_dim(
            old, new.astype(old.dtype), shared.filled, axis=1
        )

    return CacheIndex(Places(*map(write, shared.where, where)), shared.filled)
