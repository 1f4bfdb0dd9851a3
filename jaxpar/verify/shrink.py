"""Shrinking of an experiment to the smallest sizes that a layout divides."""

import contextlib
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jaxpar.experiment import Experiment
from jaxpar.models.describe import fields_of
from jaxpar.partition.layout import Layout, Placed
from jaxpar.partition.rules import IfFree
from jaxpar.run.session import refuse_misfits
from jaxpar.train.gradients import make_gradients
from jaxpar.verify.packed_rows import Packed

LAYERS, HEADS, TOKENS, VOCAB, EXPERTS = 2, 2, 16, 96, 4
"""Sizes after shrinking, where the layout needs no larger ones."""
HEAD_DIM = 8
"""Norms of fewer numbers come near 0, and then amplify rounding."""
ROWS = 2
"""Rows of a microbatch on each device: of one alone, what mixes rows would not show."""
PARTS = 2
"""Microbatches of a batch, and chunks of a device's tokens in the loss: the fewest with
which the sums over them are proven, too."""


def required_multiple(layout: Layout, name: str) -> int:
    """What the size of an axis must be a multiple of, for this layout to split it."""
    counts = [1]
    for rules in (layout.stored, layout.optimizer, layout.computed):
        axes = (a.axis if isinstance(a, IfFree) else a for a in getattr(rules, name))
        counts.append(math.prod(layout.sizes.get(axis, 1) for axis in axes))
    if name == "layers":  # Each stage has a chunk of them for each round.
        counts.append(layout.n_stages * layout.n_rounds)
    # Its all-to-all splits the heads that `tensor` leaves to a device.
    splits_heads = layout.attention == "ulysses" and name in ("heads", "kv_heads")
    return math.lcm(*counts) * (layout.sizes["context"] if splits_heads else 1)


def require_accepted(experiment: Experiment, layout: Layout) -> Any:
    """Refuses an experiment that a layout cannot split; the shapes of its parameters.

    Raises:
      UserError: as training would, at its start or while its gradients are traced.
    """
    experiment = dataclasses.replace(experiment, layout=layout)
    recipe, data = experiment.recipe(), experiment.data
    refuse_misfits(experiment)
    params, vocab_size = recipe.abstract(layout).params, recipe.model.vocab_size
    row = Packed(n_rows=1, seq_len=data.seq_len, vocab_size=vocab_size)[0]
    batch = {
        name: jax.ShapeDtypeStruct((data.batch_size, *values.shape), values.dtype)
        for name, values in experiment.objective.row(row).items()
    }
    # A mesh without devices: nothing is compiled for it.
    mesh: Any = layout.abstract()
    gradients = make_gradients(recipe, Placed(layout, mesh), **experiment.step_options)
    jax.eval_shape(gradients, params, batch, np.int32(0))
    return params


def shrunk(experiment: Experiment, layout: Layout) -> Experiment:
    """The experiment on a layout, with small values in the standard size fields.

    The kind of model stays: pattern of windows, norms, biases, grouped heads, dropout.
    A model that refuses the small sizes keeps its own, an experiment that refuses to
    have so few and short rows, too. Otherwise there are PARTS microbatches, and as many
    chunks of the loss on each device.

    Raises:
      UserError: the layout cannot split the experiment at its full size.
    """
    require_accepted(experiment, layout)
    whole = dataclasses.replace(experiment, layout=layout)
    seq_len = _least(
        experiment.data.seq_len, TOKENS, 2 * required_multiple(layout, "seq")
    )
    for resize in (_small, _unchanged):
        # Code of the user's own may raise anything where sizes are not its own.
        with contextlib.suppress(Exception):
            model = resize(experiment.model, layout, seq_len)
            small = _with_rows(whole, model, layout, seq_len)
            params = require_accepted(small, layout)
            if all(leaf.size for leaf in jax.tree.leaves(params)):
                return small
    return whole


def _with_rows(
    experiment: Experiment, model: Any, layout: Layout, seq_len: int
) -> Experiment:
    """The experiment with another model, and with as few and short rows as it takes."""
    seq_len = min(seq_len, model.max_positions)
    # With `exact`, a batch is summed over its own parts, whatever its microbatches.
    microbatches = experiment.microbatches if experiment.exact else PARTS
    rows = ROWS * microbatches * layout.batch_divisor
    microbatches *= layout.n_stages
    data = dataclasses.replace(
        experiment.data,
        seq_len=seq_len,
        batch_size=math.lcm(rows, experiment.exact or 1),
    )
    objective: Any = experiment.objective
    if getattr(objective, "chunk", None) is not None:
        chunk = max(1, seq_len // (PARTS * required_multiple(layout, "seq")))
        objective = dataclasses.replace(objective, chunk=chunk)
    return dataclasses.replace(
        experiment,
        model=model,
        data=data,
        objective=objective,
        microbatches=microbatches,
    )


def model_sizes(model: Any, layout: Layout, seq_len: int) -> dict[str, int]:
    """Small values for the standard size fields that a model's configuration has."""
    fields = fields_of(model)
    pattern = len(getattr(model, "pattern", fields.get("windows", (0,))))
    heads = fields.get("n_heads", 1)
    kv_heads = fields.get("n_kv_heads", heads)
    group = HEADS if heads > kv_heads else 1
    n_kv = _least(kv_heads, HEADS, required_multiple(layout, "kv_heads"))
    n_heads = _least(
        heads, group * n_kv, math.lcm(group * n_kv, required_multiple(layout, "heads"))
    )
    head_dim = min(HEAD_DIM, fields.get("head_dim", HEAD_DIM))
    width = math.lcm(required_multiple(layout, "embed"), n_heads * head_dim)
    wanted = {
        "n_layers": _least(
            fields.get("n_layers", 1),
            LAYERS * pattern,
            pattern * required_multiple(layout, "layers"),
        ),
        "n_heads": n_heads,
        "n_kv_heads": n_kv,
        "head_dim": head_dim,
        "d_embed": _least(fields.get("d_embed", 1), width, width),
        "d_mlp": _least(
            fields.get("d_mlp", 1), width, required_multiple(layout, "mlp")
        ),
        "n_experts": _least(
            fields.get("n_experts", 1),
            max(EXPERTS, fields.get("top_k", 1)),
            required_multiple(layout, "experts"),
        ),
        "vocab_size": _vocabulary(fields, required_multiple(layout, "vocab")),
        "max_positions": _least(
            fields.get("max_positions", 1),
            seq_len,
            required_multiple(layout, "position"),
        ),
    }
    return {name: size for name, size in wanted.items() if name in fields}


def _least(size: int, wanted: int, multiple: int) -> int:
    """The least multiple that is `wanted` or more; at most the present size."""
    return min(size, -(-wanted // multiple) * multiple)


def _vocabulary(fields: dict[str, Any], pieces: int) -> int:
    """A small vocabulary that divides once a model has padded it to a multiple."""
    size, padded_to = fields.get("vocab_size", 1), fields.get("vocab_multiple", 1)
    if -(-VOCAB // padded_to) * padded_to % pieces == 0:
        return min(size, VOCAB)
    return _least(size, VOCAB, math.lcm(padded_to, pieces))


def _small(model: Any, layout: Layout, seq_len: int) -> Any:
    return _resized(model, model_sizes(model, layout, seq_len))


def _unchanged(model: Any, layout: Layout, seq_len: int) -> Any:
    return model


def _resized(config: Any, sizes: dict[str, int]) -> Any:
    """A configuration with these values in fields of these names, at any depth."""
    new = {}
    for field in dataclasses.fields(config):
        if not field.init:
            continue
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            new[field.name] = _resized(value, sizes)
        elif field.name in sizes:
            new[field.name] = sizes[field.name]
        elif field.name == "windows" and "max_positions" in sizes:
            # Narrower than a row, so that the windows still exclude something.
            most = sizes["max_positions"] // 2
            new[field.name] = tuple(min(window, most) for window in value)
    return dataclasses.replace(config, **new)
