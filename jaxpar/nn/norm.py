"""Normalisation over the last axis: RMSNorm, LayerNorm, or none."""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxpar.nn.param import constant, param
from jaxpar.partition.precision import wide
from jaxpar.partition.sharding import gather


@dataclasses.dataclass(frozen=True)
class NormConfig(abc.ABC):
    """Which normalisation, as a value."""

    eps: float = 1e-5
    """Added to the mean square or variance before its root is taken."""

    @abc.abstractmethod
    def build(self, *, rngs: nnx.Rngs, **dims: int) -> nnx.Module:
        """The module; the keyword in `dims` names the normalised axis and its size."""


@dataclasses.dataclass(frozen=True)
class RMSNorm(NormConfig):
    """Root mean square norm, with a scale (Zhang and Sennrich, 2019)."""

    def build(self, *, rngs: nnx.Rngs, **dims: int) -> nnx.Module:
        return RMS(self.eps, dims, rngs)


class RMS(nnx.Module):
    """x / rms(x) * scale over the last axis, in no less than float32."""

    def __init__(self, eps: float, dims: dict[str, int], rngs: nnx.Rngs):
        self.eps = eps
        self.scale = param(rngs, constant(1.0), **dims)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = wide(x)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * _broadcastable(wide(gather(self.scale)), y)).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class LayerNorm(NormConfig):
    """Layer norm, with a scale and a bias (Ba et al., 2016)."""

    def build(self, *, rngs: nnx.Rngs, **dims: int) -> nnx.Module:
        return Layer(self.eps, dims, rngs)


class Layer(nnx.Module):
    """(x - mean) / std * scale + bias over the last axis, in no less than float32."""

    def __init__(self, eps: float, dims: dict[str, int], rngs: nnx.Rngs):
        self.eps = eps
        self.scale = param(rngs, constant(1.0), **dims)
        self.bias = param(rngs, constant(0.0), **dims)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        y = wide(x)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        scale, bias = (
            _broadcastable(wide(gather(w)), y) for w in (self.scale, self.bias)
        )
        return (y * scale + bias).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class NoNorm(NormConfig):
    """No normalisation; eps has no effect."""

    def build(self, *, rngs: nnx.Rngs, **dims: int) -> nnx.Module:
        return Identity()


class Identity(nnx.Module):
    """The identity."""

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        return x


def _broadcastable(w: jax.Array, x: jax.Array) -> jax.Array:
    """The vector with leading axes of size 1, as strict rank promotion requires."""
    return w.reshape((1,) * (x.ndim - w.ndim) + w.shape)
