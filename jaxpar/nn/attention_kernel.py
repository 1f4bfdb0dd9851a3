"""What an attention kernel is: forward and backward over some keys, on one device."""

from typing import NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, Int

from jaxpar.nn.places import Places


class Partial(NamedTuple):
    """Attention over some of the keys: out [B, T, N, H] is normalised over them.

    lse [B, T, N] is the logsumexp of the scores, by which partial results are merged;
    the lowest finite number where a query sees none of the keys.
    """

    out: jax.Array
    lse: jax.Array


class Gradients(NamedTuple):
    """Gradients of queries [B, T, N, H], keys and values [B, S, K, H]."""

    q: jax.Array
    k: jax.Array
    v: jax.Array


@runtime_checkable
class Kernel(Protocol):
    """Attention over some of the keys, on one device, as nn.flash_attention has it.

    Pieces of keys are merged by their logsumexp, so a kernel runs whole, gathered, in
    a ring or all-to-all (nn.context_parallel) without knowing of it. One that takes
    only all keys of a row at once (nn.kernel_table) merges nothing, and may give
    results and gradients in the type of its arguments.
    """

    def forward(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        where: Places,
        where_k: Places,
        heads: Int[Array, "N"],
    ) -> Partial:
        """Attention over these keys, in no less than float32 if they may be pieces.

        heads: the numbers of the queries' heads, of which a device may have some.
        """
        ...

    def backward(
        self,
        q: Float[Array, "B T N H"],
        k: Float[Array, "B S K H"],
        v: Float[Array, "B S K H"],
        where: Places,
        where_k: Places,
        heads: Int[Array, "N"],
        result: Partial,
        grad: Float[Array, "B T N H"],
    ) -> Gradients:
        """Gradients from these keys, likewise.

        `result` is the forward result over all keys, `grad` the gradient of its `out`.
        """
        ...
