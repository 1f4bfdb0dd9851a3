"""The training state, and the recipe from which it is made."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar.errors import UserError
from jaxpar.models.base import Model, ModelConfig
from jaxpar.models.contract import (
    checked_model,
    require_experts,
    require_order,
    require_stack,
)
from jaxpar.optim.optimizer import OptimConfig, Optimizer
from jaxpar.optim.schedule import NEVER
from jaxpar.optim.select import matching
from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.precision import Precision
from jaxpar.partition.sharding import use_layout
from jaxpar.pipeline.layer_order import in_natural_order, in_stored_order, on_devices
from jaxpar.train.objective import Objective
from jaxpar.tree import flatten, join, path_of, suffixes, unflatten

T = TypeVar("T")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a training step changes, as one pytree.

    Its leaves are arrays, or what a tree map made of them (shapes, shardings).
    """

    step: Any
    """Updates done so far; a scalar, int32."""
    params: Any
    """Parameters as nested dictionaries."""
    opt_state: Any
    """The optimizer's state, as optax keeps it."""
    decay_from: Any
    """Step at which StartDecay began the decay, or NEVER; a scalar, int32."""


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """A model's structure, without arrays."""

    graph: nnx.GraphDef[Any]
    """The module without its parameters."""
    shapes: dict[str, Any]
    """Shape and type of each parameter, as nested dictionaries."""
    names: dict[str, Any]
    """Axis names of each parameter, as nested dictionaries."""
    constant: frozenset[str]
    """Paths of the parameters that are initialised to a constant."""
    moved_by: dict[str, float]
    """By how much each step moves routers' biases, by path."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a step computes, on whatever layout."""

    model: ModelConfig
    """The model, as a value."""
    objective: Objective
    """What the model is trained to do."""
    optim: OptimConfig
    """The optimizer, with its learning rate over time."""
    precision: Precision = Precision()
    """Floating-point types of parameters, products and sums of gradients."""

    @functools.cached_property
    def anatomy(self) -> Anatomy:
        """The model's structure; allocates nothing, whatever its size.

        Raises:
          UserError: it breaks the contract of jaxpar.models.base, has state besides
            parameters, or unnamed axes.
        """
        self.precision.require_types()
        model = checked_model(self.model, self.precision)
        name = type(model).__name__
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        if jax.tree.leaves(rest):
            others = sorted(join(path) for path in rest.flat_state().paths)
            raise UserError(f"{name} has state besides parameters: {others}.")
        flat = {join(path): leaf for path, leaf in nnx.to_flat_state(params)}
        for path, leaf in flat.items():
            if getattr(leaf, "out_sharding", None) is None:
                raise UserError(
                    f"{name}: parameter {path} has no axis names; make it with "
                    "jaxpar.nn.param.param."
                )
        shapes = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for path, leaf in flat.items()
        }
        names = {path: tuple(leaf.out_sharding) for path, leaf in flat.items()}
        constant = (p for p, leaf in flat.items() if getattr(leaf, "constant", False))
        moved_by = {
            path: leaf.moved_by
            for path, leaf in flat.items()
            if getattr(leaf, "moved_by", None) is not None
        }
        shapes, names = unflatten(shapes), unflatten(names)
        return Anatomy(graph, shapes, names, frozenset(constant), moved_by)

    @property
    def bias_rates(self) -> dict[str, float]:
        """By how much each step moves routers' biases, by path; not those frozen."""
        moved = self.anatomy.moved_by
        paths = flatten(self.anatomy.names)
        frozen = matching(self.optim.freeze, paths, field="optim.freeze")
        return {path: 0.0 if path in frozen else rate for path, rate in moved.items()}

    @property
    def per_token(self) -> bool:
        """Whether a device may be given a piece of each row (Objective.per_token)."""
        # A subclass may add what is no sum over tokens, so it makes its own promise.
        own_promise = vars(type(self.objective)).get("per_token", False)
        return self.model.any_order and own_promise

    def optimizer(self, anatomy: Anatomy) -> Optimizer:
        """The optimizer of this model's parameters."""
        return self.optim.build(anatomy.names, anatomy.constant)

    def abstract(self, layout: Layout) -> TrainState:
        """Shapes of the whole state; allocates nothing.

        Raises:
          UserError: the layout's mesh axes do not divide a parameter's dimensions, or
            it reorders rows of a model that walks along them, or makes stages of one
            without a stack, or splits experts of one that has none.
        """
        anatomy = self.anatomy
        require_order(self.model, layout)
        names = flatten(anatomy.names)
        require_stack(self.model, names, layout)
        require_experts(self.model, names, layout)
        for path, leaf in flatten(anatomy.shapes).items():
            for which in ("stored", "optimizer", "computed"):
                layout.check(path, leaf.shape, names[path], which)
        opt_state = jax.eval_shape(self.optimizer(anatomy).init, anatomy.shapes)
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        return TrainState(scalar, anatomy.shapes, opt_state, scalar)

    def target(self, placed: Placed) -> TrainState:
        """Shapes of the state, with the shardings in which it is stored."""
        names = flatten(self.anatomy.names)

        def place(keys, leaf):
            which = "optimizer" if keys[0].name == "opt_state" else "stored"
            path = self.parameter_of(keys, leaf)
            if path is not None:
                sharding = placed.sharding(names[path], which)
            elif leaf.ndim == 0 or not isinstance(keys[-1], jax.tree_util.DictKey):
                # What the optimizer keeps once, such as its count of updates.
                sharding = placed.replicated
            else:
                raise UserError(
                    f"{jax.tree_util.keystr(keys)} of shape {leaf.shape} belongs to no "
                    "parameter; optimizer state must stand under its parameter's path."
                )
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(place, self.abstract(placed.layout))

    def parameter_of(self, keys: tuple, leaf: Any) -> str | None:
        """The path of the parameter that a leaf of the state is, or is a moment of.

        keys: JAX's key path of the leaf, an array or its shape. None where it belongs
        to no parameter.
        """
        shapes = flatten(self.anatomy.shapes)
        inside = path_of(k for k in keys if isinstance(k, jax.tree_util.DictKey))
        path = next((p for p in suffixes(inside) if p in shapes), None)
        same = path is not None and shapes[path].shape == leaf.shape
        return path if same else None

    def to_stored(self, placed: Placed, tree: T) -> T:
        """A state, parameters or gradients, with layers as devices hold them.

        tree: in the natural order (jaxpar.pipeline.layer_order), placed on the devices;
        its arrays are donated. Without a circular pipeline it is returned as it is.
        """
        return self._reordered(in_stored_order, placed, tree, donate=True)

    def to_natural(self, placed: Placed, tree: T) -> T:
        """The inverse of `to_stored`, but that of a circular pipeline it is a copy."""
        return self._reordered(in_natural_order, placed, tree, donate=False)

    def _reordered(self, reorder: Any, placed: Placed, tree: T, *, donate: bool) -> T:
        layout = placed.layout
        if layout.n_rounds == 1:
            return tree
        names = flatten(self.anatomy.names)

        def moved(keys, x):
            path = self.parameter_of(keys, x)
            if path is None:
                return x
            return on_devices(reorder, x, names[path], layout, donate=donate)

        return jax.tree_util.tree_map_with_path(moved, tree)

    def merge(self, anatomy: Anatomy, params: Any) -> Model:
        """The model with these parameters."""
        return cast(Model, nnx.merge(anatomy.graph, nnx.State(params)))


def create(recipe: Recipe, placed: Placed, *, seed: int) -> TrainState:
    """A state at step 0, with each shard initialised on its own device."""
    # Reading a part of it would wait for ever where memory was refused to a device.
    state = make_init(recipe, placed, seed=seed)()
    return jax.block_until_ready(recipe.to_stored(placed, state))


def make_init(recipe: Recipe, placed: Placed, *, seed: int) -> Callable[[], TrainState]:
    """A jitted function that returns a state at step 0.

    The initial parameters are the same on every layout: threefry draws by the index of
    an element in the whole array. Layers stand in their natural order: changed in this
    program, it would be fused, and rounded, in another way.
    """
    target = recipe.target(placed)
    optimizer = recipe.optimizer(recipe.anatomy)

    def init() -> TrainState:
        with use_layout(placed, recipe.precision):
            model = recipe.model.build(nnx.Rngs(params=jax.random.key(seed)))
            params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
            params = unflatten(flatten(params))  # Makes keys that are numbers text.
            opt_state = optimizer.init(params)
        return TrainState(jnp.int32(0), params, opt_state, jnp.int32(NEVER))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    return jax.jit(init, out_shardings=shardings)


def with_params(recipe: Recipe, placed: Placed, params: Any) -> TrainState:
    """A state at step 0 with given parameters, such as those of another run.

    params: their layers in the order of the devices.
    """
    target = recipe.target(placed)
    optimizer = recipe.optimizer(recipe.anatomy)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target.opt_state)
    init: Callable = jax.jit(optimizer.init, out_shardings=shardings)
    step, never = jax.device_put((jnp.int32(0), jnp.int32(NEVER)), placed.replicated)
    return TrainState(step, params, init(params), never)
