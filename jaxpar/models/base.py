"""What a model is: a configuration that builds it, and what its parts return."""

import abc
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxpar.experts.router import Report
from jaxpar.nn.places import Places


class ModelConfig(abc.ABC):
    """A model as a value: a frozen dataclass that says its sizes and builds it.

    The whole contract, of which experiments/own_model.py is an example:

    * Its fields are numbers, texts, tuples and frozen dataclasses: config.json holds
      them, and each is a flag. `vocab_size` and `max_positions` may be fields or
      properties. Fields with the usual names (n_layers, d_embed, n_heads, n_kv_heads,
      head_dim, d_mlp) are made small by `jaxpar verify`.
    * `build` returns a `Model`, whose state is parameters alone, each made by
      `jaxpar.nn.param.param`. It names their axes, by which a layout splits them:
      tensor splits heads, kv_heads, mlp and vocab; fsdp stores slices of embed; stage
      splits the layers of a stack, expert the experts; no word splits the others, nor
      names of one's own, which end in an underscore (`width_`).
    * Products with parameters are `dense`, look-ups `lookup`, other uses `gather`:
      they bring stored slices together. `constrain(x, "batch", "seq", "embed")`
      places an activation; say it where the residual stream is written.
    * `note(name, x)` names an activation: `jaxpar verify` says which one is wrong
      first, and rematerialisation can save it. Note what each block adds or returns.
    * `any_order` and `has_cache`, below, are promises that a configuration makes.

    What is wrong with a model is said before anything is compiled
    (jaxpar.models.contract).
    """

    vocab_size: int
    """Token ids that the model knows."""
    max_positions: int
    """Longest row that it takes, in tokens."""
    any_order: ClassVar[bool] = False
    """Whether it is right for tokens in any order: it knows their places from `where`,
    and mixes them in attention alone (jaxpar.nn.attention, or over_seq), or between
    `in_order` and `as_stored` (jaxpar.nn.sequence). The layouts context and ring, which
    split rows in zigzag order, are refused to other models."""
    has_cache: ClassVar[bool] = False
    """Whether the model has the method `cache`, so is a `CachingModel`; others generate
    by running the prefix again for each token."""

    @property
    def has_experts(self) -> bool:
        """Whether it has mixtures of experts, whose routers' reports belong in the
        loss (Aux.reports)."""
        return False

    @abc.abstractmethod
    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model, a `Model`; its parameters are made by jaxpar.nn.param.param."""


class Aux(NamedTuple):
    """What a model returns beside its activations."""

    cache: Any = None
    """The cache with the new tokens."""
    reports: dict[str, Report] = {}
    """What routers of experts report, by the paths of their blocks; of a stack with the
    axis of layers first. jaxpar.train.objective.with_reports adds it to a loss."""


@runtime_checkable
class Model(Protocol):
    """What a configuration builds; model code names axes and knows no mesh."""

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        where: Places,
        keys: jax.Array | None = None,
        cache: Any = None,
    ) -> tuple[Float[Array, "B T D"], Aux]:
        """Activations of the tokens at these places.

        A token sees those before it in its own document (where.segments) alone. keys
        [B] are each row's own randomness, None where nothing is random. With a cache,
        which only a CachingModel is given, the tokens see those that it holds, too.
        """
        ...

    def unembed(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits, in no less than float32, of any number T of positions.

        V is vocab_size, or more where a table is padded: those are -inf.
        """
        ...


@runtime_checkable
class CachingModel(Model, Protocol):
    """A model that keeps what it computed of earlier tokens (ModelConfig.has_cache)."""

    def cache(self, batch: int, length: int) -> Any:
        """An empty cache for `length` tokens of `batch` rows."""
        ...
