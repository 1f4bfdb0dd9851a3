"""What does a mixture of many small experts, DeepSeek's form at 16B, ask of 32 devices?

    jaxpar show experiments/deepseek_16b.py

Needs   32 devices with 80 GB, and wiki40b/en prepared by TFDS as ArrayRecord.
Expect  not run yet. Compiled for H100s, its step needs 31 GiB on each: 25 of
        temporaries.
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
    model=dataclasses.replace(sizes.DEEPSEEK_16B, remat="full"),
    data=Text("tfds:wiki40b/en", tokenizer=BPE(102_400), seq_len=4096, batch_size=1024),
    optim=AdamW(peak_lr=3e-4, warmup_steps=2_000, decay_steps=num_steps - 2_000),
    precision=Precision(compute="bfloat16"),
    layout=Layout.parse("fsdp=4,expert=8"),
    num_steps=num_steps,
    microbatches=16,
)
