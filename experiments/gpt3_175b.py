"""What would GPT-3's largest form ask of 1,024 devices?

    jaxpar show experiments/gpt3_175b.py

Needs   1,024 devices with 80 GB, and wiki40b/en prepared by TFDS as ArrayRecord.
Expect  not run yet: it has been described and its layout checked, nothing more.
"""

import dataclasses

from jaxpar.data.source import Text
from jaxpar.data.tokenizer import BPE
from jaxpar.experiment import Pretrain
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision

num_steps = 95_000

experiment = Pretrain(
    model=dataclasses.replace(sizes.GPT_175B, remat="full"),
    data=Text("tfds:wiki40b/en", tokenizer=BPE(50_257), seq_len=2048, batch_size=1536),
    optim=AdamW(peak_lr=6e-5, warmup_steps=2_000, decay_steps=num_steps - 2_000),
    precision=Precision(compute="bfloat16"),
    layout=Layout.parse("fsdp=128,tensor=8"),
    num_steps=num_steps,
)
