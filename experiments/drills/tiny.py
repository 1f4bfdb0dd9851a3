"""The run that the drills stop: a model so small that stopping is most of its work.

    jaxpar pretrain experiments/drills/tiny.py

Its losses show nothing; what counts is that they are the same, however often the run
was stopped.
"""

from jaxpar.data.source import Text
from jaxpar.experiment import Pretrain
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout

experiment = Pretrain(
    model=sizes.llama(
        vocab_size=260, n_layers=1, d_embed=16, n_heads=4, n_kv_heads=4, d_mlp=32,
        max_positions=64,
    ),
    data=Text("synthetic", seq_len=64, batch_size=8),
    optim=AdamW(peak_lr=1e-2, warmup_steps=2, decay_steps=400),
    layout=Layout.parse("data=2"),
    num_steps=400,
    eval_every=100,
    save_every=5,
    log_every=5,
)  # fmt: skip
