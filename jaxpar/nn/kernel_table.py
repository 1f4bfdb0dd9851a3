"""Which kernel computes attention, by the kind of device."""

import dataclasses
from collections.abc import Callable

import jax

from jaxpar.nn.attention_kernel import Kernel
from jaxpar.nn.flash_attention import FlashAttention
from jaxpar.nn.splash_attention import SplashAttention
from jaxpar.nn.triton_attention import TritonAttention
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision
from jaxpar.partition.sharding import current_context


@dataclasses.dataclass(frozen=True)
class Fused:
    """One kind of device's own kernel, and what it takes; tiles take everything.

    All of them mask by a token's index in its row and by segments, and ignore
    positions: rows must be whole, in order, and hold all keys that they may see.
    """

    name: str
    """What it is called at a run's start."""
    make: Callable[[FlashAttention], Kernel]
    """The kernel that computes what these tiles do."""
    types: tuple[str, ...]
    """Types of queries, keys and values; float32 besides, where its products may be
    fast. In full they are no faster in a kernel, and need much of its memory."""
    takes: tuple[str, ...] = ()
    """Of a window and a soft cap, what it knows; biases no kernel does."""
    head_dim: int = 256
    """Widest head."""


FUSED: dict[str, Fused] = {
    "gpu": Fused(
        "Pallas kernel with segments",
        lambda tiles: TritonAttention(),
        types=("bfloat16", "float16"),
    ),
    "tpu": Fused(
        "splash attention with segments",
        lambda tiles: SplashAttention(tiles.window, tiles.soft_cap),
        types=("bfloat16",),
        takes=("window", "soft_cap"),
    ),
}
"""The kinds of devices that have a kernel of their own, as Placed.platform has them."""


def kernel_for(tiles: FlashAttention, q: jax.Array, *, own_keys: bool) -> Kernel:
    """The kernel for these queries where the step runs; the tiles if no other takes it.

    own_keys: whether keys are those of the queries' own rows, neither cached nor of
    another sequence.
    """
    context = current_context()
    fused = FUSED.get(context.platform)
    precision = dataclasses.replace(context.precision, compute=q.dtype.name)
    why = why_tiles(tiles, context.layout, context.platform, precision, q.shape[-1])
    return fused.make(tiles) if fused and own_keys and not why else tiles


def why_tiles(
    tiles: FlashAttention,
    layout: Layout | None,
    platform: str,
    precision: Precision,
    width: int,
) -> str:
    """Why attention is computed in tiles; "" where the device's own kernel takes it.

    width: of a head.
    """
    fused = FUSED.get(platform)
    if fused is None:
        return f"{platform or 'no device'} has no kernel of its own"
    form, dtype = layout.attention if layout else "", precision.compute
    types = fused.types + (("float32",) if precision.products == "fast" else ())
    reasons = {
        f"heads are {width} wide, more than {fused.head_dim}": width > fused.head_dim,
        f"{dtype} is not one of {', '.join(types)}": dtype not in types,
        f"{form} splits the keys of a row": form not in ("", "ulysses"),
        "a window is set": tiles.window and "window" not in fused.takes,
        "a soft cap is set": tiles.soft_cap and "soft_cap" not in fused.takes,
        "scores have a bias": tiles.bias is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
