"""Optimizer configurations, AdamW and Muon, built into optax chains."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxpar.errors import UserError
from jaxpar.optim.schedule import Schedule
from jaxpar.optim.select import is_matrix, matching, sides
from jaxpar.partition.precision import wide
from jaxpar.partition.sharding import distribute
from jaxpar.tree import flatten, path_of


class Optimizer(NamedTuple):
    """An optimizer of certain parameters: pure functions, as optax has them."""

    init: Callable[[Any], Any]
    """params -> opt_state"""
    update: Callable[[Any, Any, Any, Any], tuple[Any, Any]]
    """(gradients, opt_state, params, learning rate) -> (updates, opt_state)"""
    schedule: Schedule
    """The learning rate over time."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """What all optimizers have; write AdamW or Muon.

    Parameters initialised to a constant (biases, norms) have no weight decay. Frozen
    ones do not count in the norm that is clipped. The second moment is never narrower
    than float32, since its small steps would be rounded away.
    """

    peak_lr: float
    """Highest learning rate, above 0; held from the warm-up to the decay."""
    warmup_steps: int
    """Steps in which the learning rate rises linearly to peak_lr; 0: none."""
    decay_steps: int
    """Steps of the learning rate's decay, counted from where it begins."""
    stable_steps: int = 0
    """Steps at peak_lr; -1: until the stopping rule begins the decay."""
    final_lr: float = 0.1
    """Learning rate after the decay, as a fraction of peak_lr, from 0 to 1."""
    decay_shape: Literal["cosine", "linear"] = "cosine"
    """Curve of the decay: a half cosine or a line."""
    weight_decay: float = 0.1
    """Fraction subtracted from a parameter per step, times the learning rate."""
    clip_norm: float = 1.0
    """Largest norm of all gradients together, above 0; larger ones are scaled to it."""
    no_decay: tuple[str, ...] = ()
    """Globs of parameter paths without weight decay, besides biases and norms."""
    freeze: tuple[str, ...] = ()
    """Globs of parameter paths that are not trained, and have no moments."""
    moments: Literal["float32", "bfloat16"] = "float32"
    """Type of the first moment; with float64 parameters float32 means float64."""

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
        """From gradients to directions, before weight decay and learning rate.

        names: axis names of all parameters, by path; frozen ones get no gradient. Each
        optimizer defines it. (Not by `abc`: its TypeError would come before the error
        that says what to write.)
        """
        raise UserError(f"{type(self).__name__} defines no `scaled`.")

    def build(self, names: dict[str, Any], constant: frozenset[str]) -> Optimizer:
        """The optimizer of a model's parameters.

        names: each parameter's axis names, as nested dictionaries. constant: paths of
        those that are initialised to a constant.

        Raises:
          UserError: a glob of no_decay or freeze matches no parameter.
        """
        flat = flatten(names)
        frozen = matching(self.freeze, flat, field="optim.freeze")
        undecayed = constant | matching(self.no_decay, flat, field="optim.no_decay")
        trained = optax.chain(
            optax.clip_by_global_norm(self.clip_norm),
            self.scaled(flat),
            optax.add_decayed_weights(
                self.weight_decay, mask=by_path(lambda path: path not in undecayed)
            ),
        )
        label = by_path(lambda path: "frozen" if path in frozen else "moving")
        chain = optax.partition(
            {"moving": trained, "frozen": optax.set_to_zero()}, label
        )

        def init(params):
            return chain.init(_wide(params))

        def update(grads, opt_state, params, rate):
            updates, opt_state = chain.update(_wide(grads), opt_state, params)
            updates = jax.tree.map(lambda u: -jnp.asarray(rate, u.dtype) * u, updates)
            return updates, opt_state

        return Optimizer(init, update, self.schedule)

    @property
    def first_moment(self) -> DTypeLike | None:
        """The type of the first moment; None: that of the gradients."""
        return jnp.bfloat16 if self.moments == "bfloat16" else None


@dataclasses.dataclass(frozen=True)
class AdamW(OptimConfig):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    b1: float = 0.9
    """Exponential decay rate of the first moment, the mean of gradients."""
    b2: float = 0.95
    """Exponential decay rate of the second moment, the mean of squared gradients."""
    eps: float = 1e-8
    """Added to the root of the second moment, so that nothing is divided by 0."""

    def scaled(self, names: dict[str, tuple[str, ...]]) -> optax.GradientTransformation:
        return optax.scale_by_adam(
            self.b1, self.b2, self.eps, mu_dtype=self.first_moment
        )


@dataclasses.dataclass(frozen=True)
class Muon(OptimConfig):
    """Muon for the matrices of the blocks (Jordan, 2024), AdamW for all else.

    Each matrix's update is multiplied by 0.2 x sqrt(longer side), which gives it the
    root mean square that Adam's updates usually have (Liu et al., 2025), so that one
    learning rate serves both.
    """

    beta: float = 0.95
    """Exponential decay rate of Muon's momentum."""
    adam_ratio: float = 1.0
    """Learning rate of the parameters that AdamW updates, as a multiple of Muon's."""
    b1: float = 0.9
    """Exponential decay rate of Adam's first moment, the mean of gradients."""
    b2: float = 0.95
    """Exponential decay rate of Adam's second moment, of squared gradients."""
    eps: float = 1e-8
    """Added to the root of Adam's second moment, so that nothing is divided by 0."""

    def scaled(self, names: dict[str, tuple[str, ...]]) -> optax.GradientTransformation:
        matrices = {
            path: sides(axes) for path, axes in names.items() if is_matrix(axes)
        }

        def dimensions(updates):
            return by_path(lambda path: MuonDimensionNumbers(*matrices[path]))(updates)

        muon = optax.chain(
            _orthogonalized(self.beta, self.first_moment, dimensions, names),
            optax.stateless(lambda updates, _: _scaled_to_adam(updates, matrices)),
        )
        adam = optax.chain(
            optax.scale_by_adam(self.b1, self.b2, self.eps, mu_dtype=self.first_moment),
            optax.scale(self.adam_ratio),
        )
        label = by_path(lambda path: "muon" if path in matrices else "adam")
        return optax.partition({"muon": muon, "adam": adam}, label)


def _orthogonalized(
    beta: float,
    moment: DTypeLike | None,
    dimensions: Callable[[Any], Any],
    names: dict[str, tuple[str, ...]],
) -> optax.GradientTransformation:
    """optax's Muon, with the layers distributed over the devices that could repeat it.

    dimensions: from updates to the tree of MuonDimensionNumbers. The state holds a
    count and moments only. optax also keeps the coefficients of the Newton-Schulz
    iteration there: an array that belongs to no parameter, which no layout could place.
    """
    muon: Any = scale_by_muon(
        beta=beta, mu_dtype=moment, weight_dimension_numbers=dimensions
    )

    def distributed(tree):
        def place(keys, x):
            return distribute(x, *names[path_of(keys)], over="layers")

        return jax.tree_util.tree_map_with_path(place, tree)

    def init(params):
        return muon.init(params)._replace(ns_coeffs=())

    def update(updates, state: Any, params=None):
        coefficients = muon.init({}).ns_coeffs
        whole = state._replace(ns_coeffs=coefficients, mu=distributed(state.mu))
        updates, whole = muon.update(distributed(updates), whole, params)
        return updates, whole._replace(ns_coeffs=())

    return optax.GradientTransformation(init, update)


def _wide(tree: Any) -> Any:
    """A tree whose leaves are no narrower than float32, as moments and norms are."""
    return jax.tree.map(wide, tree)


def by_path(f: Callable[[str], Any]) -> Callable[[Any], Any]:
    """A function from a parameter tree to a tree of f(path)."""

    def tree(params):
        return jax.tree_util.tree_map_with_path(
            lambda keys, _: f(path_of(keys)), params
        )

    return tree


def _scaled_to_adam(
    updates: Any, matrices: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
) -> Any:
    """Orthogonalized updates with the root mean square that Adam's usually have."""

    def scale(keys, x):
        rows, columns = matrices[path_of(keys)]
        longer = max(math.prod(x.shape[i] for i in side) for side in (rows, columns))
        return x * (0.2 * math.sqrt(longer))

    return jax.tree_util.tree_map_with_path(scale, updates)
