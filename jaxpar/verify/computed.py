"""All that an experiment computes on one layout, each part when it is asked for."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.data.loader import eval_batches
from jaxpar.data.windows import Window
from jaxpar.experiment import Experiment
from jaxpar.generate.logits import logits_of
from jaxpar.generate.sampling import Generator, Sampling
from jaxpar.models.base import Model
from jaxpar.nn.stack import LAYERS
from jaxpar.optim.schedule import NEVER
from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.notes import recording
from jaxpar.partition.sharding import use_layout
from jaxpar.train.balance import with_moved_biases
from jaxpar.train.gradients import make_gradients
from jaxpar.train.objective import Batch, Objective, Sums
from jaxpar.train.state import Anatomy, Recipe, TrainState, make_init
from jaxpar.train.step import make_eval_step, per_weight
from jaxpar.tree import flatten, unflatten
from jaxpar.verify import derivatives
from jaxpar.verify.compiling import CompiledAhead
from jaxpar.verify.packed_rows import Packed

NEW_TOKENS = 6
LONGEST_PROMPT = 4
SCALE = 1e2
STEP = np.int32(3)
"""The step whose keys dropout gets."""
T = TypeVar("T")


def once(read: Callable[["Computed"], T]) -> "functools.cached_property[T]":
    """A property computed once, with 64-bit types where the experiment has them."""

    def inside(self: "Computed") -> T:
        with jax.enable_x64(self.in_float64):
            return read(self)

    return functools.cached_property(inside)


class Computed:
    """An experiment on one layout; each part is computed when it is first asked for.

    given: the same on one device, whose parameters and gradients this one takes: what
    is wrong in one part then spoils none of the later ones.
    """

    def __init__(
        self,
        experiment: Experiment,
        layout: Layout,
        windows: Packed,
        given: "Computed | None" = None,
    ):
        self.experiment, self.layout = experiment, layout
        self.windows, self.given = windows, given
        self.recipe = experiment.recipe()
        self.placed = layout.on(jax.devices()[: layout.n_devices])
        self.in_float64 = experiment.precision.has_float64

    @once
    def target(self) -> TrainState:
        """Shapes and shardings of the state."""
        return self.recipe.target(self.placed)

    @once
    def anatomy(self) -> Anatomy:
        """The model taken apart."""
        return self.recipe.anatomy

    @once
    def init_program(self) -> CompiledAhead:
        """() -> the state at step 0, its layers in their natural order."""
        init = make_init(self.recipe, self.placed, seed=self.experiment.seed)
        return CompiledAhead(init)

    @once
    def state(self) -> TrainState:
        """The state at step 0, of this layout's own making."""
        return self.recipe.to_stored(self.placed, self.init_program())

    @once
    def params(self) -> Any:
        """One device's initial parameters, placed as this layout stores them."""
        if self.given is None:
            return self.state.params
        return self._taken(self.given.params)

    @once
    def batch(self) -> dict[str, jax.Array]:
        """All rows, as one batch."""
        return eval_batches(
            self.windows,
            self.experiment.objective.row,
            batch_size=len(self.windows),
            placed=self.placed,
        )[0]

    @once
    def gradient_program(self) -> CompiledAhead:
        """(params, batch, step) -> gradients of the summed loss, and the sums."""
        return self._gradient_program(self.recipe)

    def _gradient_program(self, recipe: Recipe) -> CompiledAhead:
        experiment, target = self.experiment, self.target.params
        function = make_gradients(recipe, self.placed, **experiment.step_options)
        jitted = jax.jit(function, out_shardings=(_shardings(target), None))
        return CompiledAhead(jitted, target, self.batch, STEP)

    @once
    def gradients(self) -> tuple[Any, Sums]:
        """Gradients of the summed loss, and the sums."""
        return self.gradient_program(self.params, self.batch, STEP)

    @once
    def derivatives(self) -> dict[str, np.floating]:
        """How the loss changes along a direction of each router's weights.

        Of one device as the loss itself says, of others as their gradients say.
        """
        along = derivatives.directions(self.params) if self.in_float64 else {}
        if self.given is not None:
            grads = self.recipe.to_natural(self.placed, self.gradients[0])
            return derivatives.of_gradient(grads, along)
        flat = flatten(self.params)

        def sums_at(path: str, change: np.ndarray) -> Sums:
            moved = unflatten({**flat, path: flat[path] + change})
            return self.gradient_program(moved, self.batch, STEP)[1]

        return derivatives.of_loss(sums_at, along)

    @once
    def moved_biases(self) -> dict[str, Any]:
        """What a step adds to routers' biases, by path."""
        rates = self.recipe.bias_rates
        zeros = {path: jnp.zeros(()) for path in rates}
        reports = self.gradients[1].reports
        with use_layout(self.placed):
            return flatten(with_moved_biases(unflatten(zeros), reports, rates))

    @once
    def notes(self) -> dict[str, jax.Array]:
        """What the model notes, summed over microbatches, in the order of its calls."""
        experiment = self.experiment
        objective = Noted(experiment.objective)
        noted = dataclasses.replace(self.recipe, objective=objective)
        program = self._gradient_program(noted)
        numbered: dict[str, Any] = program(self.params, self.batch, STEP)[1].metrics
        if self.layout.n_stages > 1:
            numbered = {
                key: _over_microbatches(x, int(LAYERS in key), experiment.microbatches)
                for key, x in numbered.items()
            }
        return {key.partition(" ")[2]: numbered[key] for key in sorted(numbered)}

    @once
    def updated(self) -> tuple[Any, Any]:
        """Updates and optimizer state after two steps on one device's gradients.

        They are divided by SCALE first, then multiplied: a usual bound on the norm
        clips them only the second time, and what is clipped does not show its size.
        """
        if self.given is None:
            grads, sums = self.gradients
        else:
            grads, sums = self.given.gradients
            grads = self._taken(grads)
        return self._updated(grads, sums.weight)

    @once
    def end_to_end(self) -> tuple[Any, Any]:
        """The same of this layout's own gradients."""
        grads, sums = self.gradients
        return self._updated(grads, sums.weight)

    def _taken(self, params: Any) -> Any:
        """One device's parameters, or gradients, as this layout stores them."""
        return self.recipe.to_stored(self.placed, _put(params, self.target.params))

    def _updated(self, grads: Any, weight: Any) -> tuple[Any, Any]:
        weight = self._scalar(weight)
        opt_state, params = self.state.opt_state, self.params
        _, opt_state = self.update_program(grads, weight * SCALE, opt_state, params)
        return self.update_program(grads, weight / SCALE, opt_state, params)

    @once
    def update_program(self) -> CompiledAhead:
        """(gradients, weight, optimizer state, params) -> updates, optimizer state."""
        optimizer = self.recipe.optimizer(self.anatomy)

        def update(grads, weight, opt_state, params):
            with use_layout(self.placed, self.recipe.precision):
                scale = per_weight(Sums(weight, weight, {}))
                grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
                rate = optimizer.schedule(jnp.int32(0), jnp.int32(NEVER))
                return optimizer.update(grads, opt_state, params, rate)

        params, opt_state = self.target.params, self.target.opt_state
        jitted = jax.jit(update, out_shardings=_shardings((params, opt_state)))
        return CompiledAhead(jitted, params, self._scalar(1), opt_state, params)

    def _scalar(self, x: Any) -> np.ndarray:
        return np.asarray(x, np.float64 if self.in_float64 else np.float32)

    @once
    def evaluation_program(self) -> CompiledAhead:
        """(params, batch) -> sums, without dropout."""
        step = make_eval_step(self.recipe, self.placed, exact=self.experiment.exact)
        return CompiledAhead(step, self.target.params, self.batch)

    @once
    def evaluation(self) -> dict[str, jax.Array]:
        """Summed loss and weight of an evaluation."""
        return self.evaluation_program(self.params, self.batch)

    @once
    def tokens(self) -> np.ndarray:
        """What greedy generation adds to the beginning of each row."""
        placed, params = self._to_generate
        limit = self.recipe.model.max_positions
        new = min(NEW_TOKENS, limit - 1)
        how = Sampling(max_new_tokens=new, temperature=0.0)
        longest = min(LONGEST_PROMPT, limit - new)
        prompts = self.windows.prompts(len(self.windows), longest)
        return np.array(Generator(self.recipe, placed, params, how=how)(prompts))

    @once
    def logits(self) -> np.ndarray:
        """Logits [B, T, V] of all rows, in the layout that generates."""
        placed, params = self._to_generate
        rows: list[Window] = [*self.windows]
        # Its pieces may be more than the rows, which are repeated then.
        n_rows = math.lcm(len(rows), placed.layout.batch_divisor)
        tokens = np.stack([window.tokens[:-1] for window in rows])
        tokens = np.resize(tokens, (n_rows, *tokens.shape[1:]))
        return logits_of(self.recipe, placed, params, tokens)[: len(rows)]

    @once
    def _to_generate(self) -> tuple[Placed, Any]:
        placed = self.placed.for_generation()
        params = self.recipe.to_natural(self.placed, self.params)
        return placed, _put(params, self.recipe.target(placed).params)


@dataclasses.dataclass(frozen=True)
class Noted(Objective):
    """Another objective, whose metrics are what its model notes."""

    inner: Objective

    def row(self, window: Window) -> dict[str, np.ndarray]:
        return self.inner.row(window)

    def __call__(self, model: Model, batch: Batch, keys: jax.Array | None) -> Sums:
        with recording() as notes:
            sums = self.inner(model, batch, keys)
        found = {f"{i:04} {name}": x for i, (name, x) in enumerate(notes.found.items())}
        return sums._replace(metrics=found)


def _over_microbatches(x: jax.Array, rows: int, microbatches: int) -> np.ndarray:
    """Notes of all rows, summed as one device sums them over its microbatches.

    rows: which axis theirs is; row i is of microbatch i % microbatches.
    """
    values = np.asarray(x)
    shape = values.shape
    return values.reshape(*shape[:rows], -1, microbatches, *shape[rows + 1 :]).sum(
        rows + 1
    )


def _shardings(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _put(tree: Any, target: Any) -> Any:
    """Another layout's arrays, split as this one stores them."""
    return jax.tree.map(
        lambda x, to: jax.device_put(np.asarray(x).astype(to.dtype), to.sharding),
        tree,
        target,
    )
