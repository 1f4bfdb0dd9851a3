"""Experiments as frozen values: what to train, on what, how, where, until when."""

import dataclasses
from typing import Any

from jaxpar.config import free
from jaxpar.data.source import Pairs, Source, Text
from jaxpar.data.tokenizer import BPE, Bytes
from jaxpar.models.decoder import DecoderConfig, ModelConfig
from jaxpar.nn.attention import AttentionConfig, NoNorm
from jaxpar.nn.mlp import MLPConfig
from jaxpar.nn.norm import LayerNorm, RMSNorm
from jaxpar.optim.optimizer import AdamW, Muon, OptimConfig
from jaxpar.partition.layout import Layout
from jaxpar.partition.place import Precision
from jaxpar.train.converge import Converged, Never, StopRule
from jaxpar.train.objective import CausalLM, Objective
from jaxpar.train.state import Recipe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Trains a model from random weights."""

    model: ModelConfig
    data: Source
    optim: OptimConfig
    num_steps: int = free()
    layout: Layout = free(Layout.parse("data=1"))
    objective: Objective = CausalLM()
    precision: Precision = Precision()
    stop: StopRule = Never()
    seed: int = 0
    microbatches: int = free(1)
    eval_every: int = 250
    save_every: int = free(500)
    log_every: int = free(10)
    keep: int = free(2)

    def __post_init__(self):
        check_schedule(self)

    def recipe(self) -> Recipe:
        return Recipe(self.model, self.objective, self.optim, self.precision)


@dataclasses.dataclass(frozen=True)
class FromSource(ModelConfig):
    """The model of the run that a fine-tune starts from; resolved when it starts."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune:
    """Trains on from another run's checkpoint; its model, too, unless one is given."""

    start_from: str = free()
    data: Source
    optim: OptimConfig
    model: ModelConfig = FromSource()
    num_steps: int = free()
    layout: Layout = free(Layout.parse("data=1"))
    objective: Objective = CausalLM()
    precision: Precision = Precision()
    stop: StopRule = Never()
    seed: int = 0
    microbatches: int = free(1)
    eval_every: int = 100
    save_every: int = free(500)
    log_every: int = free(10)
    keep: int = free(2)
    keep_fresh: tuple[str, ...] = ()

    def __post_init__(self):
        check_schedule(self)

    def recipe(self) -> Recipe:
        """Once `model` has been resolved to the source run's."""
        return Recipe(self.model, self.objective, self.optim, self.precision)


def check_schedule(run: Any) -> None:
    """Refuses counts that make no sense, before anything is made."""
    for name in ("num_steps", "microbatches", "eval_every", "save_every", "log_every"):
        if getattr(run, name) < 1:
            raise ValueError(f"{name}={getattr(run, name)}; it must be 1 or more.")
    run.layout.order(run.data.seq_len)  # refuses a length that its pieces do not divide
    split = run.layout.batch_divisor * run.microbatches
    if run.data.batch_size % split:
        near = max(split, run.data.batch_size // split * split)
        raise ValueError(
            f"batch_size={run.data.batch_size} is not divisible by {split}: "
            f"{run.layout.batch_divisor} pieces of layout {run.layout.spelling} x "
            f"{run.microbatches} microbatches; the nearest legal sizes are {near} and "
            f"{near + split}."
        )


CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Pretrain, Finetune, FromSource, DecoderConfig, AttentionConfig, MLPConfig,
        RMSNorm, LayerNorm, NoNorm, Text, Pairs, BPE, Bytes, AdamW, Muon, CausalLM,
        Precision, Never, Converged, Layout,
    )
}  # fmt: skip
"""The one written table of what a config.json may name."""
