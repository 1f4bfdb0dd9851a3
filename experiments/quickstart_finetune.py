"""Does pre-training on source code help to say what a function does?

From the source of a standard-library function, its docstring cut out, to the
docstring's first line; held-out functions come from held-out files alone.

    jaxpar finetune experiments/quickstart_finetune.py --start-from runs/quickstart-...
    jaxpar finetune experiments/quickstart_finetune.py --start-from RUN \\
        --data.source files:pairs.jsonl
"""

from jaxpar.data.source import Pairs
from jaxpar.experiment import Finetune
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.auto_layout import auto

num_steps = 120

experiment = Finetune(
    start_from="runs/quickstart",
    data=Pairs("stdlib", seq_len=256, batch_size=16, too_long="cut"),
    optim=AdamW(
        peak_lr=1e-3, warmup_steps=10, decay_steps=num_steps - 10, final_lr=0.0
    ),
    layout=auto(cpu="data=4,tensor=2"),
    num_steps=num_steps,
    eval_every=60,
    save_every=60,
)
