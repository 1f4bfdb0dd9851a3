"""Parameters at rest: where randomness comes from, scale, named axes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar import axes
from jaxpar.errors import UserError
from jaxpar.partition.sharding import current_precision


@dataclasses.dataclass(frozen=True)
class Init:
    """How a parameter is born: normal of a scale, or the same number everywhere."""

    fan: tuple[str, ...] = ()
    gain: float = 1.0
    fill: float | None = None

    @property
    def constant(self) -> bool:
        return self.fill is not None

    def __call__(self, key: jax.Array, dims: dict[str, int], dtype) -> jax.Array:
        shape = tuple(dims.values())
        if self.fill is not None:
            return jnp.full(shape, self.fill, dtype)
        scale = self.gain / math.sqrt(math.prod(dims[name] for name in self.fan))
        return scale * jax.random.normal(key, shape, dtype)


def fan_in(*names: str, gain: float = 1.0) -> Init:
    """Normal, with variance gain^2 / (product of the named sizes)."""
    return Init(fan=names, gain=gain)


def normal(scale: float) -> Init:
    """Normal, with this standard deviation."""
    return Init(gain=scale)


def constant(value: float) -> Init:
    """The same number everywhere; such parameters do not decay."""
    return Init(fill=value)


def param(rngs: nnx.Rngs, init: Init, **dims: int) -> nnx.Param:
    """A parameter at rest; the keywords name and size its axes, in order."""
    unknown = sorted(dims.keys() - set(axes.NAMES))
    if unknown:
        raise UserError(f"Unknown axis {unknown}; jaxpar.axes knows {axes.NAMES}.")
    value = init(rngs.params(), dims, jnp.dtype(current_precision().params))
    # Only names here: without eager sharding a model can be built where no mesh is.
    return nnx.Param(
        value, out_sharding=tuple(dims), eager_sharding=False, constant=init.constant
    )
