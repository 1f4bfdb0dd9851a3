"""A model of one's own, complete: how far does a gated running mean get, alone?

What a model must be stands in jaxpar.models.base.ModelConfig.

    jaxpar pretrain experiments/own_model.py
    jaxpar verify experiments/own_model.py --layout ring=4
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar import AdamW, Bytes, Layout, Pretrain, Text
from jaxpar.models.base import Aux, ModelConfig
from jaxpar.nn.embed import lookup
from jaxpar.nn.linear import dense, dense_logits
from jaxpar.nn.norm import RMSNorm
from jaxpar.nn.param import fan_in, normal, param
from jaxpar.nn.sequence import as_stored, in_order
from jaxpar.partition.notes import note
from jaxpar.partition.precision import wide
from jaxpar.partition.sharding import constrain

STREAM = ("batch", "seq", "embed")


@dataclasses.dataclass(frozen=True)
class RecurrentConfig(ModelConfig):
    """Gated running means of earlier tokens (Qin et al., 2023), each with an MLP."""

    any_order = True  # It walks along rows between in_order and as_stored alone.
    vocab_size: int = 264
    max_positions: int = 128
    n_layers: int = 2
    d_embed: int = 64

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return Recurrent(self, rngs)


class Block(nnx.Module):
    """Mixes the tokens of each document, then the numbers of each token."""

    def __init__(self, D: int, rngs: nnx.Rngs):
        self.norm = RMSNorm().build(embed=D, rngs=rngs)
        # A square matrix: an axis of one's own, which ends in _, is never split.
        self.w_gate = param(rngs, fan_in("embed"), embed=D, embed_=D)
        self.w_up = param(rngs, fan_in("embed"), embed=D, mlp=4 * D)
        self.w_down = param(rngs, fan_in("mlp"), mlp=4 * D, embed=D)

    def __call__(self, x, where):
        y = self.norm(x)
        gate = in_order(dense("BTD,DE->BTE", y, self.w_gate), *STREAM)
        is_first = (in_order(where.positions, "batch", "seq") == 0)[..., None]
        kept = jnp.where(is_first, 0, jax.nn.sigmoid(wide(gate)))
        mean = as_stored(running_mean(wide(in_order(y, *STREAM)), kept), *STREAM)
        up = jax.nn.silu(dense("BTD,DF->BTF", y + mean.astype(y.dtype), self.w_up))
        x = x + dense("BTF,FD->BTD", up, self.w_down)
        return note("block/out", constrain(x, *STREAM))


def running_mean(x: jax.Array, kept: jax.Array) -> jax.Array:
    """m[t] = kept[t] m[t-1] + (1 - kept[t]) x[t], for all t at once."""

    def joined(one, two):
        return one[0] * two[0], two[0] * one[1] + two[1]

    return jax.lax.associative_scan(joined, (kept, (1 - kept) * x), axis=1)[1]


class Recurrent(nnx.Module):
    """Embedding, blocks, unembedding."""

    def __init__(self, config: RecurrentConfig, rngs: nnx.Rngs):
        V, D = config.vocab_size, config.d_embed
        self.embedding = param(rngs, normal(1.0), vocab=V, embed=D)
        self.blocks = nnx.List(Block(D, rngs) for _ in range(config.n_layers))
        self.w_out = param(rngs, fan_in("embed"), embed=D, vocab=V)

    def __call__(self, tokens, where, keys=None, cache=None):
        x = constrain(lookup(self.embedding, tokens), *STREAM)
        for block in self.blocks:
            x = block(x, where)
        return x, Aux()

    def unembed(self, x):
        return dense_logits("BTD,DV->BTV", x, self.w_out)


experiment = Pretrain(
    model=RecurrentConfig(),
    data=Text("stdlib", tokenizer=Bytes(), seq_len=128, batch_size=16),
    optim=AdamW(peak_lr=3e-3, warmup_steps=20, decay_steps=180),
    layout=Layout.parse("data=2,tensor=2"),
    num_steps=200,
    eval_every=100,
    save_every=100,
)
