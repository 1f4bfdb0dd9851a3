"""Mixed precision: types of parameters, of computation, of sums of gradients."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxpar.errors import UserError

TYPES = ("bfloat16", "float16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Precision:
    """Floating-point types: bfloat16, float16, float32 or float64.

    Sums, norms, softmax, logits and the loss are never narrower than float32.
    """

    params: str = "float32"
    """Type in which parameters are stored and updated."""
    compute: str = "float32"
    """Type in which activations are stored and products are computed."""
    reduce: str = "float32"
    """Type in which gradients are summed, over microbatches and over devices."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            dtype = getattr(self, field.name)
            if dtype not in TYPES:
                raise UserError(
                    f"Precision {field.name}={dtype!r}; allowed are {', '.join(TYPES)}."
                )


def wide(x: jax.Array) -> jax.Array:
    """The array in no less than float32; float64 stays float64."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
