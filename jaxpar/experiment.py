"""Pretrain and Finetune: experiments as frozen configurations."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, Self, get_args

from flax import nnx

from jaxpar.checkpoint.failed_saves import OnSaveError
from jaxpar.config import added, free, require_positive
from jaxpar.data.source import Pairs, Source, Text
from jaxpar.data.tokenizer import BPE, Bytes
from jaxpar.data.tokenizer_file import TokenizerFile
from jaxpar.errors import UserError
from jaxpar.experts.block import MoEConfig, NoExperts
from jaxpar.experts.router import RouterConfig
from jaxpar.models.base import ModelConfig
from jaxpar.models.contract import require_frozen
from jaxpar.models.decoder import DecoderConfig
from jaxpar.nn.attention import AttentionConfig
from jaxpar.nn.mlp import MLPConfig
from jaxpar.nn.norm import LayerNorm, NoNorm, RMSNorm
from jaxpar.nn.score_bias import Alibi, NoScoreBias
from jaxpar.optim.optimizer import AdamW, Muon, OptimConfig
from jaxpar.partition.auto_layout import AnyLayout, AutoLayout
from jaxpar.partition.fixed_order import check_exact
from jaxpar.partition.layout import Layout
from jaxpar.partition.own_rows import Gathers
from jaxpar.partition.precision import Precision
from jaxpar.pipeline.ticks import microbatches
from jaxpar.train.converge import Converged, Never, StopRule
from jaxpar.train.nonfinite import OnNonfinite
from jaxpar.train.objective import CausalLM, Objective
from jaxpar.train.spikes import OnSpike, Rewind, Warn
from jaxpar.train.state import Recipe

COUNTS = (
    "num_steps", "microbatches", "eval_every", "save_every", "log_every", "keep",
    "max_skipped",
)  # fmt: skip
SEEDS = 2**32
"""JAX takes only the lowest 32 bits of a seed: a larger one would be another's twin."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(abc.ABC):
    """What every kind of training has: a model, data, an optimizer, a place, an end."""

    model: ModelConfig
    """The model, as a value."""
    data: Source
    """What it is trained on."""
    optim: OptimConfig
    """The optimizer, with its learning rate over time."""
    num_steps: int = free()
    """Steps of the whole run, at most; a resumed run may have more."""
    layout: AnyLayout = free(AutoLayout())
    """How the mesh is split, as in fsdp=4,tensor=2, whose sizes multiply to the
    devices; auto chooses for the devices that there are."""
    objective: Objective = CausalLM()
    """What the model is trained to do."""
    precision: Precision = Precision()
    """Floating-point types of parameters, products and sums of gradients."""
    stop: StopRule = Never()
    """When to stop before num_steps."""
    seed: int = 0
    """Where all randomness starts: initial weights, order of rows, dropout."""
    microbatches: int = free(1)
    """Parts of a batch that go through the model one after another; in a pipeline of S
    stages a multiple of S; where it is 1 there are 2 S, or S of few rows."""
    fsdp_gathers: Gathers = free("microbatch")
    """How often fsdp brings parameters together in training: microbatch (layer by
    layer, in both passes of each one), round (of a circular pipeline, stage=SxR: the
    layers that a stage computes in a round, in both passes), or step (all of them once,
    in the wider of precision.params and reduce). With the last two a device holds whole
    parameters and gradients, of a round or of all its layers."""
    exact: int = added(0)
    """Parts of a batch, a power of 2, whose sums are added up in one fixed order: a run
    has the same bits on any number of devices that divides it, with layouts of data and
    replica alone; 0: in the order that is fastest."""
    eval_every: int = 250
    """Steps between evaluations of the whole held-out set."""
    save_every: int = free(500)
    """Steps between checkpoints."""
    log_every: int = free(10)
    """Steps between fetches of the metrics, of which every step has a line."""
    keep: int = free(2)
    """Newest checkpoints that are kept, besides the best one; 1 or more."""
    on_save_error: OnSaveError = free("stop")
    """Where a checkpoint cannot be saved, as on a full disk: stop, or go_on (say so,
    and try again at the next save); several processes stop in either case."""
    check_replicas: int = free(500)
    """Steps between comparisons of all copies on several devices, which are also made
    before each save; 0: never."""
    on_nonfinite: OnNonfinite = added("stop")
    """After a step whose loss, gradient or update is not finite, which is never
    applied: stop (status 43), or skip (go on with the next batch)."""
    max_skipped: int = added(10)
    """Successive steps that are not applied after which skip stops, too; 1 or more."""
    on_spike: OnSpike = added(Warn())
    """After a step whose loss is far above those before it: warn, or go back."""

    def __post_init__(self):
        require_frozen(self.model)
        require_positive(self, *COUNTS)
        self._check_choices()
        if isinstance(self.layout, Layout):
            self.check_layout(self.layout)

    def recipe(self) -> Recipe:
        """What a step needs to know; `model` must be a model by now."""
        return Recipe(self.model, self.objective, self.optim, self.precision)

    @property
    def step_options(self) -> Any:
        """How gradients are made and added up: arguments of a step's makers."""
        names = ("microbatches", "fsdp_gathers", "exact", "seed")
        return {name: getattr(self, name) for name in names}

    def check_layout(self, layout: Layout) -> None:
        """Refuses a layout that cannot split the rows or the batch.

        Raises:
          UserError: names the nearest legal sizes.
        """
        layout.token_numbers(self.data.seq_len)
        self._check_stages(layout.n_stages, layout.n_rounds)
        rows, pieces = self.data.batch_size, layout.batch_divisor // layout.n_stages
        n = microbatches(layout, self.microbatches, rows)
        divisor = pieces * n
        if rows % divisor:
            near = max(divisor, rows // divisor * divisor)
            raise UserError(
                f"batch_size={rows} is not divisible by {divisor}: {pieces} pieces of "
                f"layout {layout.spelling} x {n} microbatches; "
                f"the nearest legal sizes are {near} and {near + divisor}."
            )
        of_rounds = self.fsdp_gathers == "round"
        if of_rounds and layout.stored.embed and layout.n_rounds == 1:
            raise UserError(
                f"fsdp_gathers=round: layout {layout.spelling} has no rounds, which "
                "stage=SxR has; write microbatch or step."
            )
        if self.exact:
            check_exact(layout, self.exact, self.microbatches, rows)

    def _check_stages(self, S: int, R: int) -> None:
        """Refuses S stages of R rounds that do not divide a usual model's layers."""
        n = getattr(self.model, "n_layers", S * R)
        if n % (S * R):
            legal = [f"stage={d}" for d in range(2, n + 1) if n % d == 0]
            if R > 1:
                most = range(2, n // S + 1)
                legal = [f"stage={S}x{d}" for d in most if n % (S * d) == 0] + legal
            below = n - n % (S * R)
            sizes = f"{below} or {below + S * R}" if below else f"{S * R}"
            word = f"stage={S}x{R}" if R > 1 else f"stage={S}"
            raise UserError(
                f"{word} does not divide the model's {n} layers; write "
                f"{' or '.join([*legal, f'model.n_layers={sizes}'])}."
            )

    def _check_choices(self) -> None:
        if not 0 <= self.seed < SEEDS:
            raise UserError(
                f"seed={self.seed} must be at least 0 and below 2**32 = {SEEDS:,}."
            )
        if self.check_replicas < 0:
            raise UserError(f"check_replicas={self.check_replicas}: 0 (never) or more.")
        if self.fsdp_gathers not in get_args(Gathers):
            raise UserError(
                f'fsdp_gathers={self.fsdp_gathers!r}: "microbatch", "round" or "step".'
            )
        if self.exact < 0:
            raise UserError(f"exact={self.exact}: 0 (off) or a power of 2.")
        if self.on_nonfinite not in ("stop", "skip"):
            raise UserError(f'on_nonfinite={self.on_nonfinite!r}: "stop" or "skip".')
        if self.on_save_error not in get_args(OnSaveError):
            raise UserError(f'on_save_error={self.on_save_error!r}: "stop" or "go_on".')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretrain(Experiment):
    """Trains a model from random weights."""


@dataclasses.dataclass(frozen=True)
class FromSource(ModelConfig):
    """The model of the run that a fine-tune starts from, looked up when it starts."""

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        raise UserError("The fine-tune's source has not been opened; see start_from.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finetune(Experiment):
    """Trains on from another run's checkpoint; its model, too, unless one is given."""

    start_from: str = free()
    """Directory of the run whose parameters it starts from."""
    model: ModelConfig = FromSource()
    """The source's model, unless another one is given."""
    eval_every: int = 100
    """Steps between evaluations of the whole held-out set."""
    keep_fresh: tuple[str, ...] = ()
    """Globs of parameter paths that stay newly initialised, such as unembedding."""
    grow_vocab: int = added(0)
    """vocab_size, above the source's, to which its model grows: what belongs to the
    source's ids is kept, the rest is newly initialised; 0: the source's."""
    upcycle: bool = added(False)
    """Whether each expert of the model here starts as a copy of the source's MLP, which
    has its size; routers start anew."""
    add_tokens: tuple[str, ...] = added(())
    """Texts that become an id each, after the last one of the source's tokenizer."""

    def with_model_of(self, source: Callable[[], Experiment]) -> Self:
        """With the source run's model, grown to grow_vocab ids if that is given.

        The source is asked only if it is needed.

        Raises:
          UserError: the source's model has no field vocab_size to be replaced.
        """
        if not isinstance(self.model, FromSource):
            return self
        model: Any = source().model
        if self.grow_vocab:
            if "vocab_size" not in {field.name for field in dataclasses.fields(model)}:
                raise UserError(
                    f"grow_vocab={self.grow_vocab}: {type(model).__name__} has no "
                    "field vocab_size; give the grown model by `model`."
                )
            model = dataclasses.replace(model, vocab_size=self.grow_vocab)
        return dataclasses.replace(self, model=model)


CLASSES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        Pretrain, Finetune, FromSource, DecoderConfig, AttentionConfig, MLPConfig,
        RMSNorm, LayerNorm, NoNorm, NoScoreBias, Alibi, NoExperts,
        MoEConfig, RouterConfig, Text, Pairs, BPE, Bytes,
        TokenizerFile, AdamW, Muon, CausalLM, Precision, Never, Converged, Warn, Rewind,
        Layout, AutoLayout,
    )
}  # fmt: skip
"""The one written table of what a config.json may name."""
