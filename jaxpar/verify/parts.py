"""The table of what is compared between a layout and one device."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxpar import tree
from jaxpar.train.objective import Sums
from jaxpar.verify.compiling import CompiledAhead
from jaxpar.verify.computed import Computed


@dataclasses.dataclass(frozen=True)
class Part:
    """One thing that is compared: where in a step it is, its kind, its leaves by path.

    program: begins to compile what `read` runs. exact: it must be equal bit for bit.
    limit: the relative error below which its leaves pass in float64; 0: the usual one.
    """

    where: str
    kind: str
    read: Callable[[Computed], Mapping[str, Any]]
    program: Callable[[Computed], CompiledAhead] | None = None
    exact: bool = False
    limit: float = 0.0


DERIVATIVE = 1e-4
"""Largest relative error of a central difference of the loss in float64: its own is
some 1e-6."""


def moments(computed: Computed) -> dict[str, Any]:
    """The optimizer's arrays by name: the moment, then its parameter's path."""
    parameters = tree.flatten(computed.anatomy.names)
    found = {}
    leaves = jax.tree_util.tree_leaves_with_path(computed.updated[1])
    for keys, leaf in leaves:
        fields = [k.name for k in keys if isinstance(k, jax.tree_util.GetAttrKey)]
        inside = tree.path_of(k for k in keys if isinstance(k, jax.tree_util.DictKey))
        # A partition puts its own label before the parameter's path.
        path = next((p for p in tree.suffixes(inside) if p in parameters), inside)
        name = tree.join([fields[-1] if fields else "state", path])
        while name in found:
            name += "'"
        found[name] = leaf
    return found


def _sums(sums: Sums) -> dict[str, Any]:
    return {"loss": sums.loss, "weight": sums.weight, **sums.metrics}


PARTS = (
    Part(
        "init",
        "init",
        read=lambda c: tree.flatten(c.state.params),
        program=lambda c: c.init_program,
        exact=True,
    ),
    Part(
        "forward",
        "loss",
        read=lambda c: _sums(c.gradients[1]),
        program=lambda c: c.gradient_program,
    ),
    Part(
        "backward",
        "gradient",
        read=lambda c: tree.flatten(c.gradients[0]),
        program=lambda c: c.gradient_program,
    ),
    Part(
        "optimizer",
        "update",
        read=lambda c: tree.flatten(c.updated[0]),
        program=lambda c: c.update_program,
    ),
    Part("optimizer", "state", read=moments),
    Part(
        "evaluate",
        "evaluation",
        read=lambda c: c.evaluation,
        program=lambda c: c.evaluation_program,
    ),
    # Of models with experts alone; the others have no such leaves.
    Part("forward", "router", read=lambda c: tree.flatten(c.gradients[1].reports)),
    Part("backward", "derivative", read=lambda c: c.derivatives, limit=DERIVATIVE),
    Part("optimizer", "bias", read=lambda c: c.moved_biases),
)
TOKENS = Part("generate", "tokens", lambda c: {"tokens": c.tokens}, exact=True)
LOGITS = Part("generate", "logits", lambda c: {"logits": c.logits})
END_TO_END = Part("optimizer", "end-to-end", lambda c: tree.flatten(c.end_to_end[0]))
NOTES = Part("forward", "activation", lambda c: c.notes)
