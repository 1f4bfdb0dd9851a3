"""Does training end where going on is not worth it? 40 k parameters predict bytes.

The learning rate holds until the held-out loss has converged at that rate, then falls
to zero. LOG.md has three such runs.

    jaxpar pretrain experiments/converged.py --data.source files:wikitext2-a.txt
"""

from jaxpar.data.source import Text
from jaxpar.data.tokenizer import Bytes
from jaxpar.experiment import Pretrain
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.train.converge import Converged

experiment = Pretrain(
    model=sizes.llama(
        vocab_size=259,
        n_layers=2,
        d_embed=32,
        n_heads=2,
        n_kv_heads=2,
        d_mlp=96,
        max_positions=64,
        tied=True,
    ),
    data=Text("stdlib", tokenizer=Bytes(), seq_len=64, batch_size=16),
    optim=AdamW(
        peak_lr=0.01,
        warmup_steps=50,
        stable_steps=20_000,
        decay_steps=500,
        final_lr=0.0,
        decay_shape="linear",
    ),
    layout=Layout.parse("data=1"),
    stop=Converged(),
    num_steps=20_550,
    eval_every=250,
    save_every=1000,
    log_every=100,
)
