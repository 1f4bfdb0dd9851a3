"""The smallest experiment of the same kind that a layout divides."""

import dataclasses
import math
from typing import Any

from jaxpar.experiment import Experiment
from jaxpar.models.describe import describe as describe_model
from jaxpar.models.describe import fields_of
from jaxpar.partition.layout import Layout
from jaxpar.partition.rules import IfFree
from jaxpar.train.objective import Objective

LAYERS, PAIR, TOKENS, VOCAB = 2, 2, 16, 96
HEAD_DIM = 8  # Norms of fewer numbers come near 0, and then rounding is amplified.


def most_pieces(layout: Layout, name: str) -> int:
    """Into how many pieces at most any array's axis of this name is split."""
    found = [1]
    for rules in (layout.stored, layout.optimizer, layout.computed):
        axes = (a.axis if isinstance(a, IfFree) else a for a in getattr(rules, name))
        found.append(math.prod(layout.sizes.get(axis, 1) for axis in axes))
    return math.lcm(*found)


def shrunk(experiment: Experiment, layout: Layout) -> Experiment:
    """The experiment on a layout, with its standard sizes shrunk.

    What kind of block it is stays: pattern, norms, biases, groups of heads, dropout.
    A configuration that refuses the small sizes is left whole.
    """
    whole = dataclasses.replace(experiment, layout=layout)
    whole.recipe().abstract(layout)
    seq_len = _least(experiment.data.seq_len, TOKENS, 2 * most_pieces(layout, "seq"))
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
            whole, model=model, data=data, objective=_chunked(experiment, data.seq_len)
        )
        small.recipe().abstract(layout)
    except (ValueError, TypeError):
        return whole
    return small


def model_sizes(model: Any, layout: Layout, seq_len: int) -> dict[str, int]:
    """Small sizes for those of the standard fields that the model has."""
    have = fields_of(model)
    pattern = len(have.get("windows", (0,)))
    heads = have.get("n_heads", 1)
    kv = have.get("n_kv_heads", heads)
    group = PAIR if heads > kv else 1
    n_kv = _least(kv, PAIR, most_pieces(layout, "kv_heads"))
    n_heads = _least(
        heads, group * n_kv, math.lcm(group * n_kv, most_pieces(layout, "heads"))
    )
    head_dim = min(HEAD_DIM, have.get("head_dim", HEAD_DIM))
    width = math.lcm(most_pieces(layout, "embed"), n_heads * head_dim)
    wanted = {
        "n_layers": _least(
            have.get("n_layers", 1),
            LAYERS * pattern,
            pattern * most_pieces(layout, "layers"),
        ),
        "n_heads": n_heads,
        "n_kv_heads": n_kv,
        "head_dim": head_dim,
        "d_embed": _least(have.get("d_embed", 1), width, width),
        "d_mlp": _least(have.get("d_mlp", 1), width, most_pieces(layout, "mlp")),
        "vocab_size": _vocabulary(have, most_pieces(layout, "vocab")),
        "max_positions": _least(
            have.get("max_positions", 1), seq_len, most_pieces(layout, "position")
        ),
    }
    return {name: size for name, size in wanted.items() if name in have}


def describe(experiment: Experiment) -> str:
    """The sizes that were computed, in one line."""
    rows = f"batch {experiment.data.batch_size} x {experiment.data.seq_len}"
    return f"{describe_model(experiment.model)}, {rows}"


def _least(have: int, wanted: int, multiple: int) -> int:
    """The least multiple that is `wanted` or more; never more than there was."""
    return min(have, -(-wanted // multiple) * multiple)


def _vocabulary(have: dict[str, Any], pieces: int) -> int:
    """A padded vocabulary stays padded; one that is not is divided."""
    size = have.get("vocab_size", 1)
    if "vocab_multiple" in have:
        return min(size, VOCAB)
    return _least(size, VOCAB, pieces)


def _resized(config: Any, sizes: dict[str, int]) -> Any:
    """The configuration with these sizes wherever it has fields of such names."""
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
            # Still narrower than a row, so that they are windows.
            most = sizes["max_positions"] // 2
            new[field.name] = tuple(min(window, most) for window in value)
    return dataclasses.replace(config, **new)


def _chunked(experiment: Experiment, seq_len: int) -> Objective:
    """The objective, which still takes a row in pieces if it did."""
    chunk = getattr(experiment.objective, "chunk", None)
    if chunk is None or chunk < seq_len or experiment.data.seq_len <= chunk:
        return experiment.objective
    return dataclasses.replace(experiment.objective, chunk=seq_len // 2)
