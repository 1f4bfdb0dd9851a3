"""Mixed precision: types of parameters, of computation, of sums of gradients."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxpar.config import added
from jaxpar.errors import UserError

TYPES = ("bfloat16", "float16", "float32", "float64")
P = ParamSpec("P")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Precision:
    """Floating-point types: bfloat16, float16, float32 or float64.

    Norms, softmax, logits, the loss and its sums are never narrower than float32.
    """

    params: str = "float32"
    """Type in which parameters are stored and updated."""
    compute: str = "float32"
    """Type in which activations are stored and products are computed."""
    reduce: str = "float32"
    """Type in which gradients are summed, over microbatches and over devices."""

    products: Literal["full", "fast"] = added("full")
    """How float32 numbers are multiplied: full, in float32 on every device; or fast, as
    the device does it fastest: in TF32 on recent NVIDIA GPUs, in bfloat16 on TPUs."""

    def __post_init__(self):
        for name in ("params", "compute", "reduce"):
            dtype = getattr(self, name)
            if dtype not in TYPES:
                raise UserError(
                    f"Precision {name}={dtype!r}; allowed are {', '.join(TYPES)}."
                )
        if self.reduce == "float16":
            raise UserError(
                "Precision reduce='float16': sums of gradients exceed its largest "
                "number, 65,504, before they are divided; take bfloat16 or float32."
            )
        if self.products not in ("full", "fast"):
            raise UserError(f'Precision products={self.products!r}: "full" or "fast".')

    @property
    def of_products(self) -> str | None:
        """What JAX calls the precision of float32 products: None is the fastest."""
        return "highest" if self.products == "full" else None

    @property
    def has_float64(self) -> bool:
        """Whether one of the types is float64, which JAX must be asked to allow."""
        return "float64" in dataclasses.astuple(self)

    def require_types(self) -> None:
        """Refuses float64 where JAX would take float32 for it without an error.

        Raises:
          UserError: says how JAX is asked to allow it.
        """
        if self.has_float64 and jax.dtypes.canonicalize_dtype("float64") != "float64":
            raise UserError(
                f"{self}: JAX computes float64 in float32 until it is asked not to; "
                'call jax.config.update("jax_enable_x64", True) before anything else.'
            )


@contextlib.contextmanager
def types_of(precision: Precision) -> Iterator[None]:
    """A block, and all threads while it runs, in which JAX has a precision's types.

    Every command is one; in a notebook, jax_enable_x64 is the user's own to switch on.
    """
    before = jax.config.values["jax_enable_x64"]
    jax.config.update("jax_enable_x64", before or precision.has_float64)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def in_its_types(
    function: Callable[Concatenate[Any, P], T],
) -> Callable[Concatenate[Any, P], T]:
    """The function, in the types of the experiment that it takes first."""

    @functools.wraps(function)
    def run(experiment: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        with types_of(experiment.precision):
            return function(experiment, *args, **kwargs)

    return run


def wide_type(dtype: DTypeLike) -> jnp.dtype:
    """The type, or float32 if it is narrower."""
    return jnp.promote_types(dtype, jnp.float32)


def wide(x: jax.Array) -> jax.Array:
    """The array in no less than float32; float64 stays float64."""
    return x.astype(wide_type(x.dtype))
