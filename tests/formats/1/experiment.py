"""The first run that must open for ever: a tiny Llama form on `synthetic`.

jaxpar pretrain tests/formats/format1.py
"""

from jaxpar.data.source import Text
from jaxpar.experiment import Pretrain
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout

run = Pretrain(
    model=sizes.llama(
        vocab_size=260,
        n_layers=1,
        d_embed=8,
        n_heads=2,
        n_kv_heads=2,
        d_mlp=16,
        max_positions=64,
    ),
    data=Text("synthetic", seq_len=64, batch_size=8),
    optim=AdamW(peak_lr=1e-2, warmup_steps=2, decay_steps=8, stable_steps=0),
    layout=Layout.parse("fsdp=2,tensor=2"),
    num_steps=6,
    eval_every=3,
    save_every=3,
    log_every=1,
    keep=1,
)
