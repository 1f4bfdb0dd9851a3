"""What an experiment computes on one layout, part by part."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.config import paths
from jaxpar.data.pipeline import eval_batches
from jaxpar.generate.logits import logits_of
from jaxpar.generate.sample import Generator, Sampling
from jaxpar.optim.schedule import NEVER
from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.notes import recording
from jaxpar.partition.place import under
from jaxpar.train.objective import Objective, Sums
from jaxpar.train.state import Recipe, make_init
from jaxpar.train.step import make_eval_step, make_gradients, mean_weight
from jaxpar.verify.ahead import Ahead
from jaxpar.verify.rows import Packed

NEW_TOKENS = 6
LARGER = 1e2
STEP = np.int32(3)  # Whose keys dropout gets.


def part(read: Callable[[Any], Any]) -> Any:
    """A property computed once, in 64 bits where the run is."""

    def inside(self):
        with jax.enable_x64(self.wide):
            return read(self)

    return functools.cached_property(inside)


class Computed:
    """A run on one layout; each part is compiled when it is first asked for.

    fed: the run on one device, whose parameters and gradients this one is given: what
    is wrong in one part then spoils none of the later ones.
    """

    def __init__(
        self, run, layout: Layout, windows: Packed, fed: "Computed | None" = None
    ):
        self.run, self.layout, self.windows, self.fed = run, layout, windows, fed
        self.recipe = run.recipe()
        self.placed = _on(layout)
        self.wide = run.precision.params == "float64"

    def prepare(self, parts: Iterable["Part"]) -> None:
        """Compiles what these parts run, several at a time."""
        for part in parts:
            if part.program:
                getattr(self, part.program)

    @part
    def target(self):
        return self.recipe.target(self.placed)

    @part
    def anatomy(self):
        return self.recipe.anatomy

    @part
    def init_program(self):
        return Ahead(make_init(self.recipe, self.placed, seed=self.run.seed))

    @part
    def state(self):
        return self.init_program()

    @part
    def params(self):
        if self.fed is None:
            return self.state.params
        return _put(self.fed.params, self.target.params)

    @part
    def batch(self):
        return eval_batches(
            self.windows,
            self.run.objective.row,
            batch_size=len(self.windows),
            placed=self.placed,
        )[0]

    @part
    def gradient_program(self):
        return self._gradient_program(self.recipe)

    def _gradient_program(self, recipe: Recipe):
        function = make_gradients(
            recipe, self.placed, microbatches=self.run.microbatches, seed=self.run.seed
        )
        jitted = jax.jit(function, out_shardings=(_shardings(self.target.params), None))
        return Ahead(jitted, self.target.params, self.batch, STEP)

    @part
    def gradients(self) -> tuple[Any, Sums]:
        """Gradients of the summed loss, and the sums."""
        return self.gradient_program(self.params, self.batch, STEP)

    @part
    def notes(self) -> dict[str, jax.Array]:
        """What the model notes, summed over microbatches, in the order of its calls."""
        noted = dataclasses.replace(self.recipe, objective=Noted(self.run.objective))
        program = self._gradient_program(noted)
        numbered = program(self.params, self.batch, STEP)[1].metrics
        return {key.partition(" ")[2]: numbered[key] for key in sorted(numbered)}

    @part
    def updated(self):
        """Updates and optimizer state after two steps on one device's gradients.

        They are divided by LARGER first, then multiplied: a usual bound clips them
        only the second time, and what is clipped does not show its size.
        """
        if self.fed is None:
            grads, sums = self.gradients
        else:
            grads, sums = self.fed.gradients
            grads = _put(grads, self.target.params)
        return self._updated(grads, sums.weight)

    @part
    def end_to_end(self):
        """The same of its own gradients."""
        grads, sums = self.gradients
        return self._updated(grads, sums.weight)

    def _updated(self, grads, weight):
        weight = self._scalar(weight)
        opt_state, params = self.state.opt_state, self.params
        _, opt_state = self.update_program(grads, weight * LARGER, opt_state, params)
        return self.update_program(grads, weight / LARGER, opt_state, params)

    @part
    def update_program(self):
        optimizer = self.recipe.optimizer(self.anatomy)

        def update(grads, weight, opt_state, params):
            with under(self.placed, self.recipe.precision, self.run.microbatches):
                share = mean_weight(Sums(weight, weight, {}))
                grads = jax.tree.map(lambda g: g * share.astype(g.dtype), grads)
                rate = optimizer.schedule(jnp.int32(0), jnp.int32(NEVER))
                return optimizer.update(grads, opt_state, params, rate)

        params, opt_state = self.target.params, self.target.opt_state
        jitted = jax.jit(update, out_shardings=_shardings((params, opt_state)))
        return Ahead(jitted, params, self._scalar(1), opt_state, params)

    def _scalar(self, x) -> np.ndarray:
        return np.asarray(x, np.float64 if self.wide else np.float32)

    @part
    def evaluation_program(self):
        step = make_eval_step(self.recipe, self.placed)
        return Ahead(step, self.target.params, self.batch)

    @part
    def evaluation(self) -> dict[str, jax.Array]:
        return self.evaluation_program(self.params, self.batch)

    @part
    def tokens(self) -> np.ndarray:
        """What greedy generation adds to the beginning of each row."""
        placed, params = self._to_generate
        limit = self.recipe.model.max_positions
        new = min(NEW_TOKENS, limit - 1)
        how = Sampling(max_new_tokens=new, temperature=0.0)
        prompts = self.windows.prompts(len(self.windows), min(4, limit - new))
        return np.array(Generator(self.recipe, placed, params, how=how)(prompts))

    @part
    def logits(self) -> np.ndarray:
        placed, params = self._to_generate
        rows = np.stack([window.tokens[:-1] for window in self.windows])
        return logits_of(self.recipe, placed, params, rows)

    @part
    def _to_generate(self):
        placed = self.placed.for_generation()
        return placed, _put(self.params, self.recipe.target(placed).params)


@dataclasses.dataclass(frozen=True)
class Noted(Objective):
    """Another objective, whose metrics are what its model notes."""

    inner: Objective

    def __call__(self, model, batch, keys) -> Sums:
        with recording() as notes:
            sums = self.inner(model, batch, keys)
        found = {f"{i:04} {name}": x for i, (name, x) in enumerate(notes.found.items())}
        return sums._replace(metrics=found)


def moments(run: Computed) -> dict[str, Any]:
    """The optimizer's arrays by name: the moment, then its parameter's path."""
    names = paths(run.anatomy.names)
    found = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(run.updated[1])[0]:
        fields = [k.name for k in keys if isinstance(k, jax.tree_util.GetAttrKey)]
        inside = [str(k.key) for k in keys if isinstance(k, jax.tree_util.DictKey)]
        # A partition puts its own label before the parameter's path.
        path = next(
            (p for i in range(len(inside)) if (p := "/".join(inside[i:])) in names),
            "/".join(inside),
        )
        name = "/".join([fields[-1] if fields else "state", path])
        while name in found:
            name += "'"
        found[name] = leaf
    return found


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing that is compared: where it is wrong, its leaves, how they are named.

    program: the property of Computed that compiles what `read` runs.
    """

    where: str
    kind: str
    read: Callable[[Computed], Mapping[str, Any]]
    program: str = ""
    exact: bool = False


PARTS = (
    Part("init", "init", lambda run: paths(run.state.params), "init_program", True),
    Part("forward", "loss", lambda run: _sums(run.gradients[1]), "gradient_program"),
    Part(
        "backward", "gradient", lambda run: paths(run.gradients[0]), "gradient_program"
    ),
    Part("optimizer", "update", lambda run: paths(run.updated[0]), "update_program"),
    Part("optimizer", "state", moments),
    Part("evaluate", "evaluation", lambda run: run.evaluation, "evaluation_program"),
)
TOKENS = Part("generate", "tokens", lambda run: {"tokens": run.tokens}, exact=True)
LOGITS = Part("generate", "logits", lambda run: {"logits": run.logits})
END_TO_END = Part("optimizer", "end-to-end", lambda run: paths(run.end_to_end[0]))


def _sums(sums: Sums) -> dict[str, Any]:
    return {"loss": sums.loss, "weight": sums.weight, **sums.metrics}


def _on(layout: Layout) -> Placed:
    return layout.on(jax.devices()[: layout.n_devices])


def _shardings(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _put(tree, target):
    """Another layout's arrays where this one has them at rest."""
    return jax.tree.map(
        lambda x, to: jax.device_put(np.asarray(x).astype(to.dtype), to.sharding),
        tree,
        target,
    )
