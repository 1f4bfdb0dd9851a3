"""What changes while training, and the recipe that does not."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxpar.models.decoder import ModelConfig
from jaxpar.optim.optimizer import OptimConfig
from jaxpar.optim.schedule import NEVER
from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.place import Precision, alone, under
from jaxpar.train.objective import Objective


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a step changes; a state at step k has seen k updates."""

    step: Any
    params: Any
    opt_state: Any
    decay_from: Any


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """A model taken apart, without arrays: its graph, shapes, names, constants."""

    graph: Any
    shapes: dict
    names: dict
    constant: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Model, objective, optimizer and precision: a step knows nothing else."""

    model: ModelConfig
    objective: Objective
    optim: OptimConfig
    precision: Precision = Precision()

    @functools.cached_property
    def anatomy(self) -> Anatomy:
        """The model's parts by eval_shape; allocates nothing, at any size."""
        with alone(self.precision):
            model = nnx.eval_shape(lambda: self.model.build(nnx.Rngs(params=0)))
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        if jax.tree.leaves(rest):
            raise ValueError(
                "The model keeps state that is no parameter: "
                f"{sorted('/'.join(map(str, p)) for p in rest.flat_state().paths)}."
            )
        flat = {tuple(map(str, p)): v for p, v in nnx.to_flat_state(params)}
        for path, leaf in flat.items():
            if getattr(leaf, "out_sharding", None) is None:
                raise ValueError(
                    f"Parameter {'/'.join(path)} carries no axis names; make it with "
                    "jaxpar.nn.param.param."
                )
        return Anatomy(
            graph,
            _nested(
                {p: jax.ShapeDtypeStruct(v.shape, v.dtype) for p, v in flat.items()}
            ),
            _nested({p: tuple(v.out_sharding) for p, v in flat.items()}),
            frozenset(
                "/".join(p) for p, v in flat.items() if getattr(v, "constant", False)
            ),
        )

    def optimizer(self, anatomy: Anatomy):
        return self.optim.build(anatomy.names, anatomy.constant)

    def abstract(self, layout: Layout) -> TrainState:
        """Shapes of the whole state, checked against a layout; allocates nothing."""
        anatomy = self.anatomy
        for path, leaf in _flat(anatomy.shapes).items():
            names = _flat(anatomy.names)[path]
            for which in ("stored", "optimizer", "computed"):
                layout.check("/".join(path), leaf.shape, names, which)
        opt_state = jax.eval_shape(self.optimizer(anatomy).init, anatomy.shapes)
        scalar = jax.ShapeDtypeStruct((), jnp.int32)
        return TrainState(scalar, anatomy.shapes, opt_state, scalar)

    def target(self, placed: Placed) -> TrainState:
        """Shapes with the shardings they have at rest: what a restore fills."""
        anatomy = self.anatomy
        names = _flat(anatomy.names)
        shapes = _flat(anatomy.shapes)

        def at(path, leaf):
            keys = tuple(k.key for k in path if isinstance(k, jax.tree_util.DictKey))
            kind = "optimizer" if path[0].name == "opt_state" else "stored"
            found = _longest_suffix(keys, names)
            if found is not None and shapes[found].shape == leaf.shape:
                sharding = placed.sharding(names[found], kind)
            elif leaf.ndim == 0 or not isinstance(path[-1], jax.tree_util.DictKey):
                # The optimizer's own: a count, coefficients.
                sharding = placed.replicated
            else:
                raise ValueError(
                    f"{jax.tree_util.keystr(path)} of shape {leaf.shape} belongs to no "
                    "parameter; optimizer state must stand under its parameter's path."
                )
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree_util.tree_map_with_path(at, self.abstract(placed.layout))

    def merge(self, anatomy: Anatomy, params) -> Any:
        """The model with these parameters."""
        return nnx.merge(anatomy.graph, nnx.State(params))


def create(recipe: Recipe, placed: Placed, *, seed: int) -> TrainState:
    """A state at step 0, every shard made on the device that will own it."""
    return make_init(recipe, placed, seed=seed)()


def make_init(recipe: Recipe, placed: Placed, *, seed: int):
    """A jitted () -> state at step 0.

    Random bits are the same on every layout: threefry counts elements, not shards.
    """
    target = recipe.target(placed)
    optimizer = recipe.optimizer(recipe.anatomy)

    def init():
        with under(placed, recipe.precision):
            model = recipe.model.build(nnx.Rngs(params=jax.random.key(seed)))
            params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
            params = _strings(params)
            opt_state = optimizer.init(params)
        return TrainState(jnp.int32(0), params, opt_state, jnp.int32(NEVER))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, target)
    return jax.jit(init, out_shardings=shardings)


def fresh(recipe: Recipe, placed: Placed, params) -> TrainState:
    """A state at step 0 with parameters that another run learned."""
    target = recipe.target(placed)
    optimizer = recipe.optimizer(recipe.anatomy)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, target.opt_state)
    init: Callable = jax.jit(optimizer.init, out_shardings=shardings)
    step, never = jax.device_put((jnp.int32(0), jnp.int32(NEVER)), placed.replicated)
    return TrainState(step, params, init(params), never)


def _strings(tree):
    if not isinstance(tree, dict):
        return tree
    return {str(k): _strings(v) for k, v in tree.items()}


def _nested(flat: dict[tuple, Any]) -> dict:
    tree: dict = {}
    for path, leaf in flat.items():
        at = tree
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = leaf
    return tree


def _flat(tree: dict, prefix: tuple = ()) -> dict[tuple, Any]:
    flat = {}
    for key, value in tree.items():
        inner = _flat(value, (*prefix, key)) if isinstance(value, dict) else None
        flat.update(inner if inner is not None else {(*prefix, key): value})
    return flat


def _longest_suffix(keys: tuple, names: dict) -> tuple | None:
    return next((keys[i:] for i in range(len(keys)) if keys[i:] in names), None)
