"""How much Python can be learned in five minutes on two cores?

The running interpreter's own standard library, held out by file, with a small Llama
over a mesh that mixes data and tensor parallelism on a CPU, where eight devices are
simulated; on accelerators, over as many as there are.

    jaxpar pretrain experiments/quickstart.py
    jaxpar pretrain experiments/quickstart.py --data.source "files:*.txt"
"""

from jaxpar.data.source import Text
from jaxpar.data.tokenizer import BPE
from jaxpar.experiment import Pretrain
from jaxpar.models import sizes
from jaxpar.nn.norm import RMSNorm
from jaxpar.optim.optimizer import Muon
from jaxpar.partition.auto_layout import auto

num_steps = 600

experiment = Pretrain(
    model=sizes.llama(
        vocab_size=4096,
        n_layers=4,
        d_embed=256,
        n_heads=8,
        n_kv_heads=8,
        d_mlp=704,
        max_positions=256,
        qk_norm=RMSNorm(),
        tied=True,
        # On a CPU, making the rest again takes less time than storing it.
        remat="dots",
    ),
    data=Text("stdlib", tokenizer=BPE(4096), seq_len=256, batch_size=8),
    optim=Muon(
        peak_lr=0.02,
        warmup_steps=20,
        decay_steps=num_steps - 20,
        final_lr=0.0,
        decay_shape="linear",
        weight_decay=0.05,
    ),
    layout=auto(cpu="data=4,tensor=2"),
    num_steps=num_steps,
    eval_every=300,
    save_every=300,
)
