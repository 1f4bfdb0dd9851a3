"""What a model is: a configuration that builds it, and what its parts return."""

import abc
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxpar.nn.places import Places


class ModelConfig(abc.ABC):
    """A model as a value: a frozen dataclass that says its sizes and builds it."""

    vocab_size: int
    """Token ids that the model knows."""
    max_positions: int
    """Longest row that it takes, in tokens."""

    @abc.abstractmethod
    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """The model, a `Model`; its parameters are made by jaxpar.nn.param.param."""


class Aux(NamedTuple):
    """What a model returns beside its activations: the cache with the new tokens."""

    cache: Any = None


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

        keys [B] are each row's own randomness, None where nothing is random. With a
        cache, the tokens see those that the cache holds, too.
        """
        ...

    def unembed(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits, in no less than float32."""
        ...

    def cache(self, batch: int, length: int) -> Any:
        """An empty cache for `length` tokens of `batch` rows.

        None where the model keeps none: generation then runs the prefix again for each
        token, and says so.
        """
        ...
