"""Rotary position embedding (RoPE)."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpar.partition.precision import wide


def rotate(
    x: Float[Array, "B T N H"], positions: Int[Array, "B T"], theta: float
) -> Float[Array, "B T N H"]:
    """Rotates the pairs (i, i + H/2) of each head by position (Su et al., 2021)."""
    y = wide(x)
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=y.dtype) / half)
    # float32 or wider on purpose: bfloat16 cannot tell 257 from 256.
    angle = positions[:, :, None, None].astype(y.dtype) * frequency.reshape(1, 1, 1, -1)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = y[..., :half], y[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
