"""What does a mixture of Mixtral's form, 8x7B, ask of 64 devices?

    jaxpar show experiments/mixtral_8x7b.py

Needs   64 devices with 80 GB, and wiki40b/en prepared by TFDS as ArrayRecord.
Expect  not run yet. Compiled for H100s, its step needs 25 GiB on each: 16 of
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
    model=dataclasses.replace(sizes.MIXTRAL_8X7B, remat="full"),
    data=Text("tfds:wiki40b/en", tokenizer=BPE(32_000), seq_len=4096, batch_size=1024),
    optim=AdamW(peak_lr=3e-4, warmup_steps=2_000, decay_steps=num_steps - 2_000),
    precision=Precision(compute="bfloat16"),
    layout=Layout.parse("fsdp=8,expert=8"),
    num_steps=num_steps,
    microbatches=16,
)
