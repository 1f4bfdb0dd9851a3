"""A user's own model with a bug that only splitting over `tensor` shows."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar.data.source import Text
from jaxpar.data.tokenizer import Bytes
from jaxpar.experiment import Pretrain
from jaxpar.models.base import Aux, ModelConfig
from jaxpar.nn.embed import lookup
from jaxpar.nn.linear import dense
from jaxpar.nn.param import fan_in, normal, param
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.collectives import local
from jaxpar.partition.layout import Layout
from jaxpar.partition.notes import note
from jaxpar.partition.sharding import constrain, gather


@dataclasses.dataclass(frozen=True)
class OwnConfig(ModelConfig):
    vocab_size: int = 264
    d_embed: int = 32
    max_positions: int = 64

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return Own(self, rngs)


class Own(nnx.Module):
    """Each token predicts the next one; its bias is added on every shard."""

    def __init__(self, config: OwnConfig, rngs: nnx.Rngs):
        V, D = config.vocab_size, config.d_embed
        self.embedding = param(rngs, normal(1.0), vocab=V, embed=D)
        self.w_up = param(rngs, fan_in("embed"), embed=D, mlp=2 * D)
        self.w_down = param(rngs, fan_in("mlp"), mlp=2 * D, embed=D)
        self.bias = param(rngs, normal(1.0), embed=D)
        self.w_out = param(rngs, fan_in("embed"), embed=D, vocab=V)

    def __call__(self, tokens, where, keys=None, cache=None):
        x = constrain(lookup(self.embedding, tokens), "batch", "seq", "embed")
        x = note("own/in", x)
        hidden = note("own/hidden", jnp.tanh(dense("BTD,DF->BTF", x, self.w_up)))

        def down(collectives, hidden, w, bias):
            return collectives.psum(hidden @ w + bias.reshape(1, 1, -1))

        run = local(
            down,
            in_axes=(("batch", "seq", "mlp"), ("mlp", "embed"), ("embed",)),
            out_axes=("batch", "seq", "embed"),
            over="mlp",
        )
        x = note("own/out", x + run(hidden, gather(self.w_down), gather(self.bias)))
        return jax.nn.relu(x), Aux()

    def unembed(self, x):
        return dense("BTD,DV->BTV", x, self.w_out)

    def cache(self, batch, length):
        return None


experiment = Pretrain(
    model=OwnConfig(),
    data=Text("synthetic", tokenizer=Bytes(), seq_len=32, batch_size=8),
    optim=AdamW(peak_lr=1e-2, warmup_steps=2, decay_steps=10),
    layout=Layout.parse("data=2,tensor=2"),
    num_steps=4,
)
