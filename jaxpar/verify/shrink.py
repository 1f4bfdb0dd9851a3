"""Shrinking of an experiment to the smallest sizes that a layout divides."""

import dataclasses
import math
from typing import Any

from jaxpar.experiment import Experiment
from jaxpar.models.describe import fields_of
from jaxpar.partition.layout import Layout
from jaxpar.partition.rules import IfFree
from jaxpar.train.objective import Objective

LAYERS, HEADS, TOKENS, VOCAB = 2, 2, 16, 96
"""Sizes after shrinking, where the layout needs no larger ones."""
HEAD_DIM = 8
"""Norms of fewer numbers come near 0, and then amplify rounding."""


def required_multiple(layout: Layout, name: str) -> int:
    """What the size of an axis must be a multiple of, for this layout to split it."""
    counts = [1]
    for rules in (layout.stored, layout.optimizer, layout.computed):
        axes = (a.axis if isinstance(a, IfFree) else a for a in getattr(rules, name))
        counts.append(math.prod(layout.sizes.get(axis, 1) for axis in axes))
    return math.lcm(*counts)


def shrunk(experiment: Experiment, layout: Layout) -> Experiment:
    """The experiment on a layout, with small values in the standard size fields.

    The kind of model stays: pattern of windows, norms, biases, grouped heads, dropout.
    An experiment whose configuration refuses the small sizes is returned unshrunk.

    Raises:
      UserError: the layout cannot split the model at its full size.
    """
    whole = dataclasses.replace(experiment, layout=layout)
    whole.recipe().abstract(layout)
    seq_len = _least(
        experiment.data.seq_len, TOKENS, 2 * required_multiple(layout, "seq")
    )
    sizes = model_sizes(experiment.model, layout, seq_len)
    try:
        model = _resized(experiment.model, sizes)
        data = dataclasses.replace(
            experiment.data,
            seq_len=min(seq_len, model.max_positions),
            batch_size=_least(
                experiment.data.batch_size,
                2 * layout.batch_divisor,
                experiment.microbatches * layout.batch_divisor,
            ),
        )
        small = dataclasses.replace(
            whole,
            model=model,
            data=data,
            objective=_with_chunks(experiment, data.seq_len),
        )
        small.recipe().abstract(layout)
    except (ValueError, TypeError):
        return whole
    return small


def model_sizes(model: Any, layout: Layout, seq_len: int) -> dict[str, int]:
    """Small values for the standard size fields that a model's configuration has."""
    fields = fields_of(model)
    pattern = len(fields.get("windows", (0,)))
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
    """A small vocabulary; only a model that does not pad its own needs a multiple."""
    size = fields.get("vocab_size", 1)
    if "vocab_multiple" in fields:
        return min(size, VOCAB)
    return _least(size, VOCAB, pieces)


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


def _with_chunks(experiment: Experiment, seq_len: int) -> Objective:
    """The objective, with a chunk shorter than a row if it was shorter before."""
    chunk = getattr(experiment.objective, "chunk", None)
    if chunk is None or chunk < seq_len or experiment.data.seq_len <= chunk:
        return experiment.objective
    return dataclasses.replace(experiment.objective, chunk=seq_len // 2)
