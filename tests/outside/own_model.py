"""A model and an objective of one's own, in a file outside the package."""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from jaxpar.data import task
from jaxpar.data.source import Text
from jaxpar.data.tokenizer import Bytes
from jaxpar.experiment import Pretrain
from jaxpar.models.base import Aux, ModelConfig
from jaxpar.nn.embed import lookup
from jaxpar.nn.linear import dense
from jaxpar.nn.param import fan_in, normal, param
from jaxpar.nn.places import Places
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.partition.sharding import constrain
from jaxpar.train.loss import token_losses
from jaxpar.train.objective import Objective, Sums


@dataclasses.dataclass(frozen=True)
class BagConfig(ModelConfig):
    vocab_size: int = 264
    d_embed: int = 32
    max_positions: int = 64

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return Bag(self, rngs)


class Bag(nnx.Module):
    """Each token predicts the next one from itself and a running mean.

    It walks along the sequence, and says nothing of it: rows in zigzag order are
    refused to it.
    """

    def __init__(self, config: BagConfig, rngs: nnx.Rngs):
        V, D = config.vocab_size, config.d_embed
        self.embedding = param(rngs, normal(1.0), vocab=V, embed=D)
        self.w_up = param(rngs, fan_in("embed"), embed=D, mlp=4 * D)
        self.w_down = param(rngs, fan_in("mlp"), mlp=4 * D, embed=D)
        self.w_out = param(rngs, fan_in("embed"), embed=D, vocab=V)

    def __call__(self, tokens, where, keys=None, cache=None):
        x = constrain(lookup(self.embedding, tokens), "batch", "seq", "embed")
        count = (where.positions + 1)[..., None].astype(x.dtype)
        mean = jnp.cumsum(x, axis=1) / count
        hidden = jnp.tanh(dense("BTD,DF->BTF", x + mean, self.w_up))
        return x + dense("BTF,FD->BTD", hidden, self.w_down), Aux()

    def unembed(self, x):
        return dense("BTD,DV->BTV", x, self.w_out)


@dataclasses.dataclass(frozen=True)
class Smoothed(Objective):
    """Cross-entropy of which a share goes to every token alike."""

    share: float = 0.1

    def row(self, window):
        return task.causal(window)

    def __call__(self, model, batch, keys):
        where = Places(batch["positions"], batch["segments"])
        x, _ = model(batch["tokens"], where, keys)
        logits = model.unembed(x)
        losses = token_losses(logits, batch["targets"])
        even = token_losses(logits, jnp.zeros_like(batch["targets"]))
        losses = (1 - self.share) * losses + self.share * even
        return Sums(jnp.sum(losses * batch["weights"]), jnp.sum(batch["weights"]), {})


experiment = Pretrain(
    model=BagConfig(),
    data=Text("synthetic", tokenizer=Bytes(), seq_len=32, batch_size=8),
    optim=AdamW(peak_lr=1e-2, warmup_steps=2, decay_steps=10),
    objective=Smoothed(),
    layout=Layout.parse("fsdp=4,tensor=2"),
    num_steps=4,
    eval_every=4,
    save_every=2,
    log_every=1,
)
