"""Sizes of a model's configuration (layers, heads, widths): found, and described."""

import dataclasses
from typing import Any

from jaxpar.experts.block import MoEConfig
from jaxpar.experts.grouped_matmul import matmul_said
from jaxpar.models.base import ModelConfig
from jaxpar.nn.attention import AttentionConfig, attention_said
from jaxpar.partition.layout import Placed
from jaxpar.partition.precision import Precision

SIZES = (
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "d_embed",
    "d_mlp",
    "n_experts",
    "top_k",
    "n_shared_experts",
    "vocab_size",
    "max_positions",
)


def fields_of(config: Any) -> dict[str, Any]:
    """All fields of a configuration and of those in it, by name."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found.update(fields_of(value))
        found[field.name] = value
    return found


def describe(model: ModelConfig) -> str:
    """The class and its standard sizes, in one line."""
    sizes = ", ".join(
        f"{name} {value}"
        for name, value in fields_of(model).items()
        if name in SIZES and isinstance(value, int)
    )
    name = type(model).__name__
    return f"{name}: {sizes}" if sizes else name


def kernels_said(model: ModelConfig, placed: Placed, precision: Precision) -> list[str]:
    """Lines on what computes a model's attention and experts, where it has these."""
    fields = fields_of(model)
    experts = fields.get("experts")
    of_experts = (
        [matmul_said(placed.platform, has_slots=experts.capacity_factor > 0)]
        if isinstance(experts, MoEConfig)
        else []
    )
    if not isinstance(attention := fields.get("attention"), AttentionConfig):
        return of_experts
    said = (
        attention_said(
            dataclasses.replace(attention, window=window),
            placed.layout,
            placed.platform,
            precision,
        )
        for window in fields.get("windows", (attention.window,))
    )
    return [*dict.fromkeys(said), *of_experts]
