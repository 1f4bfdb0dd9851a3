"""An objective of one's own: predicts each token from those after it."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxpar import AdamW, Layout, Pretrain, Text
from jaxpar.data.task import causal
from jaxpar.data.windows import Window
from jaxpar.models import sizes
from jaxpar.nn.places import Places
from jaxpar.train.loss import chunked_loss
from jaxpar.train.objective import Objective, Sums


@dataclasses.dataclass(frozen=True)
class Backwards(Objective):
    """Next-token prediction of each document read from its end."""

    def row(self, window: Window) -> dict[str, np.ndarray]:
        turned = Window(
            tokens=window.tokens[::-1],
            segments=window.segments[::-1],
            positions=np.arange(len(window.tokens), dtype=np.int32),
            weights=window.weights[::-1],
        )
        return causal(turned)

    def __call__(self, model, batch, keys) -> Sums:
        where = Places(batch["positions"], batch["segments"])
        x, _ = model(batch["tokens"], where, keys)
        weights = batch["weights"]
        loss = chunked_loss(model.unembed, x, batch["targets"], weights, chunk=16)
        return Sums(loss, jnp.sum(weights), {})


experiment = Pretrain(
    model=sizes.llama(
        vocab_size=259, n_layers=1, d_embed=16, n_heads=2, n_kv_heads=2, d_mlp=16,
        max_positions=32,
    ),
    data=Text("synthetic", seq_len=32, batch_size=8),
    objective=Backwards(),
    optim=AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=3),
    layout=Layout.parse("data=8"),
    num_steps=3,
)  # fmt: skip
