"""Optimizers as values, built by path into optax chains."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxpar.errors import UserError
from jaxpar.optim.schedule import Schedule
from jaxpar.optim.select import is_matrix, matching, sides
from jaxpar.partition.sharding import distribute
from jaxpar.tree import flatten, path_of


class Optimizer(NamedTuple):
    """init(params); update(grads, opt_state, params, rate) -> (updates, opt_state)."""

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    schedule: Schedule


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Learning rate over time, decay, clipping, and what is frozen.

    stable_steps -1 waits for the stopping rule to begin the decay. Parameters born
    constant, and paths that no_decay matches, do not decay; those that freeze
    matches get no update, hold no moments, and do not count in the norm that is
    clipped. Moments are never narrower than float32, but the first one may be
    bfloat16 (a second one would round its own small steps away). Written by this name,
    the configuration is an AdamW.
    """

    peak_lr: float
    warmup_steps: int
    decay_steps: int
    stable_steps: int = 0
    final_lr: float = 0.1
    decay_shape: Literal["cosine", "linear"] = "cosine"
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    no_decay: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    moments: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self):
        if type(self) is OptimConfig:
            raise UserError("OptimConfig names no optimizer; write AdamW or Muon.")
        if self.decay_shape not in ("cosine", "linear"):
            raise UserError(f"decay_shape={self.decay_shape!r}: cosine or linear.")
        if not (self.peak_lr > 0 and self.clip_norm > 0):
            raise UserError(
                f"peak_lr={self.peak_lr}, clip_norm={self.clip_norm}; must be above 0."
            )
        if not (0 <= self.final_lr <= 1 and self.weight_decay >= 0):
            raise UserError(
                f"final_lr={self.final_lr} is a fraction of peak_lr, from 0 to 1; "
                f"weight_decay={self.weight_decay} must be 0 or more."
            )
        if self.moments not in ("float32", "bfloat16"):
            raise UserError(f"moments={self.moments!r}: float32 or bfloat16.")
        if min(self.warmup_steps, self.decay_steps) < 0 or self.stable_steps < -1:
            raise UserError(
                f"warmup_steps={self.warmup_steps}, stable_steps={self.stable_steps}, "
                f"decay_steps={self.decay_steps}; each must be 0 or more (stable_steps "
                "may be -1: until the stopping rule begins the decay)."
            )

    @property
    def schedule(self) -> Schedule:
        """The learning rate; decay_steps counts from the end of the stable steps."""
        return Schedule(
            self.peak_lr,
            self.warmup_steps,
            self.stable_steps,
            self.decay_steps,
            self.final_lr,
            self.decay_shape,
        )

    def scaled(self, names: dict[str, tuple[str, ...]]) -> optax.GradientTransformation:
        """Gradients to descent directions, for the parameters that are not frozen."""
        raise NotImplementedError(f"{type(self).__name__} is no optimizer.")

    def build(self, names: dict, constant: frozenset[str]) -> Optimizer:
        """The optimizer for parameters of these names, some of them born constant."""
        flat = flatten(names)
        frozen = matching(self.freeze, flat, field="optim.freeze")
        still = constant | matching(self.no_decay, flat, field="optim.no_decay")
        moving = optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            self.scaled(flat),
            optax.add_decayed_weights(
                self.weight_decay, mask=by_path(lambda path: path not in still)
            ),
        )
        label = by_path(lambda path: "frozen" if path in frozen else "moving")
        chain = optax.partition(
            {"moving": moving, "frozen": optax.set_to_zero()}, label
        )

        def init(params):
            return chain.init(_wide(params))

        def update(grads, opt_state, params, rate):
            updates, opt_state = chain.update(_wide(grads), opt_state, params)
            updates = jax.tree.map(lambda u: -jnp.asarray(rate, u.dtype) * u, updates)
            return updates, opt_state

        return Optimizer(init, update, self.schedule)

    @property
    def first_moment(self):
        """The type of the first moment; None follows the parameters."""
        return jnp.bfloat16 if self.moments == "bfloat16" else None


@dataclasses.dataclass(frozen=True)
class AdamW(OptimConfig):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def scaled(self, names) -> optax.GradientTransformation:
        return optax.scale_by_adam(
            self.b1, self.b2, self.eps, mu_dtype=self.first_moment
        )


@dataclasses.dataclass(frozen=True)
class Muon(OptimConfig):
    """Muon for the matrices of the blocks (Jordan, 2024), AdamW for the rest.

    Each matrix's update is scaled to the root mean square that Adam's usually has,
    0.2 x sqrt(longer side) (Liu et al., 2025), so one learning rate serves both;
    adam_ratio multiplies it for the rest.
    """

    beta: float = 0.95
    adam_ratio: float = 1.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8

    def scaled(self, names) -> optax.GradientTransformation:
        matrices = {
            path: sides(axes) for path, axes in names.items() if is_matrix(axes)
        }

        def numbers(updates):
            return by_path(lambda path: MuonDimensionNumbers(*matrices[path]))(updates)

        muon = optax.chain(
            _orthogonal(self.beta, self.first_moment, numbers, names),
            optax.stateless(lambda updates, _: _scaled_to_adam(updates, matrices)),
        )
        adam = optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.first_moment),
            optax.scale(self.adam_ratio),
        )
        label = by_path(lambda path: "muon" if path in matrices else "adam")
        return optax.partition({"muon": muon, "adam": adam}, label)


def _orthogonal(
    beta: float, moment, numbers: Any, names: dict[str, tuple[str, ...]]
) -> optax.GradientTransformation:
    """optax's Muon, each layer's matrices on devices of their own where these suffice.

    Its state is nothing but a count and moments. optax keeps the iteration's
    coefficients there, too: an array that belongs to no parameter, so that no layout
    could place it.
    """
    muon = scale_by_muon(beta=beta, mu_dtype=moment, weight_dimension_numbers=numbers)

    def apart(tree):
        def place(keys, x):
            return distribute(x, *names[path_of(keys)], over="layers")

        return jax.tree_util.tree_map_with_path(place, tree)

    def init(params):
        state: Any = muon.init(params)
        return state._replace(ns_coeffs=())

    def update(updates, state, params=None):
        empty: Any = muon.init({})
        whole: Any = state._replace(ns_coeffs=empty.ns_coeffs, mu=apart(state.mu))
        updates, whole = muon.update(apart(updates), whole, params)
        return updates, whole._replace(ns_coeffs=())

    return optax.GradientTransformation(init, update)


def _wide(tree):
    """No leaf narrower than float32, so that neither moments nor norms are."""
    return jax.tree.map(
        lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree
    )


def by_path(f: Callable[[str], Any]) -> Callable[[Any], Any]:
    """A function from a parameter tree to a tree of f(path)."""

    def tree(params):
        return jax.tree_util.tree_map_with_path(
            lambda keys, _: f(path_of(keys)), params
        )

    return tree


def _scaled_to_adam(updates, matrices):
    def scale(keys, x):
        rows, columns = matrices[path_of(keys)]
        longer = max(math.prod(x.shape[i] for i in side) for side in (rows, columns))
        return x * (0.2 * math.sqrt(longer))

    return jax.tree_util.tree_map_with_path(scale, updates)
