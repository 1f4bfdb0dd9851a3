"""Normalisation over the embedding."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar.nn.param import constant, param
from jaxpar.partition.precision import wide
from jaxpar.partition.sharding import gather


@dataclasses.dataclass(frozen=True)
class NormConfig:
    """Which normalisation, as a value: `build(axis=size, rngs=rngs)`."""

    eps: float = 1e-5

    def build(self, *, rngs: nnx.Rngs, **dims: int) -> nnx.Module:
        raise NotImplementedError(f"{type(self).__name__} builds no norm.")


@dataclasses.dataclass(frozen=True)
class RMSNorm(NormConfig):
    """Root mean square norm (Zhang and Sennrich, 2019)."""

    def build(self, *, rngs: nnx.Rngs, **dims: int) -> nnx.Module:
        return RMS(self.eps, dims, rngs)


@dataclasses.dataclass(frozen=True)
class LayerNorm(NormConfig):
    """Layer norm with scale and bias (Ba et al., 2016)."""

    def build(self, *, rngs: nnx.Rngs, **dims: int) -> nnx.Module:
        return Layer(self.eps, dims, rngs)


@dataclasses.dataclass(frozen=True)
class NoNorm(NormConfig):
    """No normalisation at all."""

    def build(self, *, rngs: nnx.Rngs, **dims: int) -> nnx.Module:
        return Identity()


class Identity(nnx.Module):
    """The identity."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


class RMS(nnx.Module):
    """x / rms(x) * scale over the last axis, not narrower than single precision."""

    def __init__(self, eps: float, dims: dict[str, int], rngs: nnx.Rngs):
        self.eps = eps
        self.scale = param(rngs, constant(1.0), **dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = wide(x)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * _rows(wide(gather(self.scale)), y)).astype(x.dtype)


class Layer(nnx.Module):
    """(x - mean) / std * scale + bias over the last axis."""

    def __init__(self, eps: float, dims: dict[str, int], rngs: nnx.Rngs):
        self.eps = eps
        self.scale = param(rngs, constant(1.0), **dims)
        self.bias = param(rngs, constant(0.0), **dims)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = wide(x)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        scale, bias = (_rows(wide(gather(w)), y) for w in (self.scale, self.bias))
        return (y * scale + bias).astype(x.dtype)


def _rows(w: jax.Array, x: jax.Array) -> jax.Array:
    """The vector with leading axes of size 1, as strict rank promotion wants."""
    return w.reshape((1,) * (x.ndim - w.ndim) + w.shape)
