"""Does 124M parameters on Wikipedia match the usual curve?

Baseline for later questions: GPT-2's smallest form, AdamW, cosine, no tricks.

    jaxpar data prepare experiments/gpt2_124m.py
    jaxpar pretrain experiments/gpt2_124m.py

Needs   8 devices with 16 GB or more, and wiki40b/en prepared by TFDS as ArrayRecord.
Expect  not run yet: it has been described and its layout checked, nothing more.
"""

from jaxpar.data.source import Text
from jaxpar.data.tokenizer import BPE
from jaxpar.experiment import Pretrain
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision

num_steps = 60_000

experiment = Pretrain(
    model=sizes.GPT_124M,
    data=Text("tfds:wiki40b/en", tokenizer=BPE(50_257), seq_len=1024, batch_size=512),
    optim=AdamW(peak_lr=6e-4, warmup_steps=2_000, decay_steps=num_steps - 2_000),
    precision=Precision(compute="bfloat16"),
    layout=Layout.parse("fsdp=8"),
    num_steps=num_steps,
    eval_every=1_000,
    save_every=1_000,
)
