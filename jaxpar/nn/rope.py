"""Rotary position embedding."""

import jax
import jax.numpy as jnp

from jaxpar.partition.precision import wide


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotates pairs (i, i + H/2) of x [B, T, N, H] by position (Su et al., 2021)."""
    y = wide(x)
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=y.dtype) / half)
    # Never narrower than single precision: bfloat16 cannot tell 257 from 256.
    angle = positions[:, :, None, None].astype(y.dtype) * frequency.reshape(1, 1, 1, -1)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = y[..., :half], y[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)
