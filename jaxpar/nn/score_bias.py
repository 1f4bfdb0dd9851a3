"""Biases on attention's scores, as values: none, or ALiBi."""

import abc
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Bias = Callable[[jax.Array, jax.Array], jax.Array]
"""(distance, heads) -> what is added to the scores; the arguments broadcast.

distance: positions from key to query, in the scores' type; heads: numbers of heads.
"""


@dataclasses.dataclass(frozen=True)
class ScoreBias(abc.ABC):
    """What is added to attention's scores; nothing in it is learned."""

    @abc.abstractmethod
    def build(self, n_heads: int) -> Bias | None:
        """The function for a model of so many heads; None adds nothing."""


@dataclasses.dataclass(frozen=True)
class NoScoreBias(ScoreBias):
    """Scores are the scaled products of queries and keys alone."""

    def build(self, n_heads: int) -> Bias | None:
        return None


@dataclasses.dataclass(frozen=True)
class Alibi(ScoreBias):
    """Scores sink with the distance, in each head at its own rate (Press et al., 2022).

    It takes the place of positions: switch the rotary ones off with rope_theta=0.
    """

    def build(self, n_heads: int) -> Bias | None:
        rates = _rates(n_heads)

        def bias(distance: jax.Array, heads: jax.Array) -> jax.Array:
            return -jnp.asarray(rates, distance.dtype)[heads] * distance

        return bias


def _rates(n_heads: int) -> np.ndarray:
    """2^(-8 i / n); where n is no power of 2, every other one of 2 n fills it up."""
    n = 2 ** (n_heads.bit_length() - 1)
    rates = 2.0 ** (-8 / n * np.arange(1, n + 1))
    return rates if n == n_heads else np.append(rates, _rates(2 * n)[::2])[:n_heads]
