"""What does a model of Llama's 7B form ask of 32 devices?

    jaxpar show experiments/llama_7b.py

Needs   32 devices with 80 GB, and wiki40b/en prepared by TFDS as ArrayRecord.
Expect  not run yet. Compiled for H100s, its step needs 51 GiB on each: 49 of
        temporaries, 92 at one microbatch; 59 with attention in tiles.
"""

import dataclasses

from jaxpar.data.source import Text
from jaxpar.data.tokenizer import BPE
from jaxpar.experiment import Pretrain
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision

num_steps = 250_000

experiment = Pretrain(
    model=dataclasses.replace(sizes.LLAMA_7B, remat="full"),
    data=Text("tfds:wiki40b/en", tokenizer=BPE(32_000), seq_len=2048, batch_size=2048),
    optim=AdamW(peak_lr=3e-4, warmup_steps=2_000, decay_steps=num_steps - 2_000),
    precision=Precision(compute="bfloat16"),
    layout=Layout.parse("fsdp=16,tensor=2"),
    num_steps=num_steps,
    microbatches=2,
)
