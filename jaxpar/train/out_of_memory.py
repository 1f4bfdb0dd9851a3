"""What is said where a device has no memory left."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax

from jaxpar.errors import OutOfMemory
from jaxpar.tables import size_of
from jaxpar.train.state import TrainState

EXHAUSTED = "RESOURCE_EXHAUSTED"


@contextlib.contextmanager
def explained(target: TrainState, *, rows: int, microbatches: int) -> Iterator[None]:
    """A block whose lack of device memory becomes one error with what to do.

    target: the shapes and shardings of the state. rows: of the global batch.

    Raises:
      OutOfMemory: a device has refused memory, while compiling or running.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # The disk, too, may be exhausted; then the storage library says so.
        if EXHAUSTED not in str(error) or "memory" not in str(error).lower():
            raise
        params, moments = map(bytes_on_device, (target.params, target.opt_state))
        raise OutOfMemory(
            f"A device has no memory left ({_first_line(error)}). Of the state each "
            f"holds {size_of(params + moments)}: parameters {size_of(params)}, the "
            f"optimizer's {size_of(moments)}; gradients take {size_of(params)} more, "
            f"and activations of {rows} rows in {microbatches} microbatches the rest. "
            "Less memory: more --microbatches, model.remat, fsdp=N (parameters and "
            "optimizer) or zero1=N (optimizer) in --layout, a smaller data.batch_size."
        ) from error


def bytes_on_device(tree: Any) -> int:
    """The most bytes of a tree of jax.ShapeDtypeStruct that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
