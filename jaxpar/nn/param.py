"""Parameters: initialisation, and axes that are named."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxpar.errors import UserError
from jaxpar.partition.precision import wide_type
from jaxpar.partition.rules import require_known
from jaxpar.partition.sharding import current_precision


@dataclasses.dataclass(frozen=True)
class Init:
    """How a parameter is initialised: normally distributed, or one number everywhere.

    See `fan_in`, `normal` and `constant`.
    """

    fan: tuple[str, ...] = ()
    """Names of the axes whose sizes divide the variance."""
    gain: float = 1.0
    """Standard deviation where no axis divides it."""
    fill: float | None = None
    """The number that stands everywhere; None draws from the normal distribution."""

    @property
    def constant(self) -> bool:
        """Whether all elements start as the same number."""
        return self.fill is not None

    def __call__(
        self, key: jax.Array, dims: dict[str, int], dtype: jnp.dtype
    ) -> Float[Array, "..."]:
        """An initial value; dims are the axes, in order, with their sizes."""
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
    """The same number everywhere; weight decay leaves such parameters out."""
    return Init(fill=value)


def param(
    rngs: nnx.Rngs, init: Init, *, moved_by: float = 0.0, **dims: int
) -> nnx.Param:
    """A new parameter; the keywords name its axes and give their sizes, in order.

    Names are those of jaxpar.axes, or one's own with an underscore at their end:
    `param(rngs, fan_in("embed"), embed=D, embed_=D)` is a square matrix. moved_by:
    above 0, it is a router's bias, which no optimizer changes, but each step by so much
    (jaxpar.train.balance).

    Raises:
      UserError: an axis has an unknown name, or fan_in names none of the axes.
    """
    require_known(dims)
    for name in init.fan:
        if name not in dims:
            raise UserError(
                f"fan_in({name!r}) names no axis of this parameter, which has "
                f"{', '.join(dims) or 'none'}."
            )
    dtype = jnp.dtype(current_precision().params)
    # In a narrower type small moves of a bias would be lost.
    value = init(rngs.params(), dims, wide_type(dtype) if moved_by else dtype)
    # Without eager sharding, a model can be built where there is no mesh.
    return nnx.Param(
        value,
        out_sharding=tuple(dims),
        eager_sharding=False,
        constant=init.constant,
        moved_by=moved_by,
    )
