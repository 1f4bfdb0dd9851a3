"""Do 8 experts, 2 of them for each token, learn more than one MLP as wide as those 2?

A mixture of experts on the standard library, in some ten minutes on two cores; and its
dense twin, which has as many parameters for each token and the same steps:

    jaxpar pretrain experiments/moe.py
    jaxpar pretrain experiments/moe.py --model.experts noexperts --layout data=2

Expect  the routers' statistics in each line of metrics.jsonl. After 1,000 steps both
        have 4.18 nats per token, and the dense twin is faster: experiments/LOG.md.
"""

import dataclasses

from jaxpar.data.source import Text
from jaxpar.data.tokenizer import BPE
from jaxpar.experiment import Pretrain
from jaxpar.experts.block import MoEConfig
from jaxpar.experts.router import RouterConfig
from jaxpar.models import sizes
from jaxpar.nn.mlp import MLPConfig
from jaxpar.nn.norm import RMSNorm
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.auto_layout import auto

num_steps = 1000

dense = sizes.llama(
    vocab_size=4096,
    n_layers=4,
    d_embed=256,
    n_heads=8,
    n_kv_heads=8,
    d_mlp=704,
    max_positions=256,
    qk_norm=RMSNorm(),
    tied=True,
)

experiment = Pretrain(
    model=dataclasses.replace(
        dense,
        experts=MoEConfig(
            n_experts=8,
            expert=MLPConfig(d_mlp=352),
            router=RouterConfig(top_k=2, bias=True),
        ),
    ),
    data=Text("stdlib", tokenizer=BPE(4096), seq_len=256, batch_size=8),
    optim=AdamW(peak_lr=3e-3, warmup_steps=50, decay_steps=num_steps - 50),
    layout=auto(cpu="expert=2"),
    num_steps=num_steps,
    eval_every=200,
    save_every=500,
)
