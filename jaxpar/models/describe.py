"""Sizes of a model's configuration (layers, heads, widths): found, and described."""

import dataclasses
from typing import Any

from jaxpar.models.base import ModelConfig

SIZES = (
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "d_embed",
    "d_mlp",
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
