"""The tiny run of the drills, with Muon and dropout.

jaxpar pretrain experiments/drills/tiny_muon.py
"""

import dataclasses

from experiments.drills.tiny import experiment as with_adamw
from jaxpar.optim.optimizer import Muon

experiment = dataclasses.replace(
    with_adamw,
    model=dataclasses.replace(with_adamw.model, dropout=0.1),
    optim=Muon(peak_lr=1e-2, warmup_steps=2, decay_steps=400),
)
