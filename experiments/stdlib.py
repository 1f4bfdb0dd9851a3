"""How far does an hour on two cores go, on the whole standard library?

Six layers of width 256, stopped when the held-out loss has converged.

    jaxpar pretrain experiments/stdlib.py
"""

from jaxpar.data.source import Text
from jaxpar.data.tokenizer import BPE
from jaxpar.experiment import Pretrain
from jaxpar.models import sizes
from jaxpar.nn.norm import RMSNorm
from jaxpar.optim.optimizer import Muon
from jaxpar.partition.layout import Layout
from jaxpar.train.converge import Converged

experiment = Pretrain(
    model=sizes.llama(
        vocab_size=4096,
        n_layers=6,
        d_embed=256,
        n_heads=8,
        n_kv_heads=8,
        d_mlp=768,
        max_positions=256,
        qk_norm=RMSNorm(),
        tied=True,
        dropout=0.1,
    ),
    data=Text("stdlib", tokenizer=BPE(4096), seq_len=256, batch_size=8),
    optim=Muon(
        peak_lr=0.02,
        warmup_steps=50,
        stable_steps=1350,
        decay_steps=2400,
        final_lr=0.0,
        decay_shape="linear",
        weight_decay=0.1,
    ),
    layout=Layout.parse("data=1"),
    stop=Converged(),
    num_steps=3800,
    eval_every=400,
    save_every=200,
)
