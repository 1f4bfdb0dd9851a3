"""Checks that a model keeps the contract of jaxpar.models.base, by shapes alone."""

import contextlib
import functools
import math
import sysconfig
import traceback
from collections.abc import Iterator
from inspect import get_annotations
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import jaxpar
from jaxpar.errors import UserError, one_line
from jaxpar.models.base import CachingModel, Model, ModelConfig
from jaxpar.nn.places import one_document_per_row
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision
from jaxpar.partition.sharding import WholeRowsNeeded, single_device

LONGEST_MESSAGE = 600
"""Characters of a library's message that are repeated."""


def checked_model(config: ModelConfig, precision: Precision) -> nnx.Module:
    """The model that a configuration builds, without arrays, whatever its size.

    Raises:
      UserError: what breaks the contract, with its class, and what was expected.
    """
    name = type(config).__name__
    require_frozen(config)
    with single_device(precision):
        with explained(f"{name}.build"):
            model = nnx.eval_shape(lambda: config.build(nnx.Rngs(params=0)))
    _check_interface(name, config, model)
    try:
        hash(config)
    except TypeError:  # A field is a list: the check is made each time.
        _check_forward.__wrapped__(config, precision)
    else:
        _check_forward(config, precision)
    return model


def require_frozen(config: Any) -> None:
    """Refuses, with what to write, a configuration that is no frozen dataclass."""
    kind, wrong = type(config), ""
    params = getattr(kind, "__dataclass_params__", None)
    # Of a subclass that adds fields without the decorator; it inherits the params.
    lost = [] if "__dataclass_params__" in vars(kind) else [*get_annotations(kind)]
    if not isinstance(config, ModelConfig):
        wrong = "it must be derived from jaxpar.models.base.ModelConfig"
    elif params is None or lost:
        wrong = "it must have @dataclasses.dataclass(frozen=True) above the class"
        wrong += f", without which it has no field {', '.join(lost)}" if lost else ""
    elif not params.frozen:
        wrong = "its @dataclasses.dataclass must have frozen=True"
    if wrong:
        raise UserError(f"{kind.__name__} is no model's configuration: {wrong}.")


def require_order(config: ModelConfig, layout: Layout) -> None:
    """Refuses, with what to do, zigzag rows to a model that walks along them."""
    if layout.reorders_seq and not config.any_order:
        name = type(config).__name__
        raise UserError(
            f"{name}: layout {layout.spelling} splits rows in zigzag order, in which a "
            "scan, cumsum or convolution is wrong. If the model mixes tokens in "
            "attention alone, or between in_order and as_stored (jaxpar.nn.sequence), "
            f"say `any_order = True` in {name}; else take ulysses, which keeps the "
            "order, or a layout that keeps rows whole."
        )


def require_stack(config: ModelConfig, names: Any, layout: Layout) -> None:
    """Refuses stages to a model of which no parameter is stacked by layers.

    names: axis names of its parameters, by path.
    """
    if layout.n_stages > 1 and not any("layers" in axes for axes in names.values()):
        raise UserError(
            f"{type(config).__name__}: layout {layout.spelling} cuts a stack of layers "
            "into stages, and the model has none; make its blocks with "
            "jaxpar.nn.stack.stacked and run them with its scan, or write another "
            "layout."
        )


def require_experts(config: ModelConfig, names: Any, layout: Layout) -> None:
    """Refuses devices for experts to a model that has none.

    names: axis names of its parameters, by path.
    """
    (mesh_axes,) = layout.split(("experts",), "stored")
    n = math.prod(layout.sizes[axis] for axis in mesh_axes)
    if n > 1 and not any("experts" in axes for axes in names.values()):
        raise UserError(
            f"{type(config).__name__}: layout {layout.spelling} splits experts over "
            f"{n} devices, and the model has none; write data={n} in its place, or "
            "give the model experts (experts=MoEConfig(...) of a DecoderConfig)."
        )


@contextlib.contextmanager
def explained(what: str, *, refusals: bool = True) -> Iterator[None]:
    """Errors of a model's own code: what was called, the whole message, and where.

    refusals: whether those of jaxpar itself are explained, too.
    """
    try:
        yield
    except WholeRowsNeeded:  # The step is traced again, with whole rows.
        raise
    except UserError as error:
        if not refusals:
            raise
        raise UserError(f"{what}: {one_line(error)}{_where(error)}") from error
    except Exception as error:  # Code of the user's own may raise anything.
        message = " ".join(str(error).split())[:LONGEST_MESSAGE]
        error_name = type(error).__name__
        raise UserError(f"{what}: {error_name}: {message}{_where(error)}") from error


def _where(error: Exception) -> str:
    """The innermost line of code that is neither jaxpar's nor a library's."""
    libraries = {Path(jaxpar.__file__).parent, Path(sysconfig.get_path("stdlib"))}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        of_library = "site-packages" in path.parts or libraries & {*path.parents}
        if path.is_file() and not of_library:
            return f" ({path.name}, line {frame.lineno}: {frame.line})"
    return ""


def _check_interface(name: str, config: ModelConfig, model: Any) -> None:
    if not isinstance(model, nnx.Module):
        raise UserError(
            f"{name}.build returns {_described(model)}; it must return the model, an "
            "nnx.Module."
        )
    for field in ("vocab_size", "max_positions"):
        value = getattr(config, field, None)
        if type(value) is not int or value < 1:
            raise UserError(
                f"{name} has {field}={value!r}; it needs a whole number of 1 or more "
                f"as a field or a property, as in {field}: int = 1024."
            )
    protocol = CachingModel if config.has_cache else Model
    for method in ("__call__", "unembed", "cache"):
        if hasattr(protocol, method) and not callable(getattr(model, method, None)):
            raise UserError(
                f"{_described(model)} has no method {method}, which is in "
                f"jaxpar.models.base.{protocol.__name__}."
            )


@functools.lru_cache
def _check_forward(config: ModelConfig, precision: Precision) -> None:
    """Traces what objectives do with a model, on rows as long as it takes them."""

    def forward(tokens: jax.Array) -> None:
        _run(config, config.build(nnx.Rngs(params=0)), tokens)

    tokens = jax.ShapeDtypeStruct((2, config.max_positions), jnp.int32)
    with single_device(precision):
        jax.eval_shape(forward, tokens)


def _run(config: ModelConfig, model: Any, tokens: jax.Array) -> None:
    """Calls a model, and refuses what it returns where that is wrong."""
    name, (B, T), V = type(model).__name__, tokens.shape, config.vocab_size
    with explained(f"{name}.__call__ of tokens [{B}, {T}], where and keys=None"):
        found = model(tokens, one_document_per_row(tokens), None)
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise UserError(
            f"{name}.__call__ returns {_described(found)}; it must return a pair: "
            f"activations [{B}, {T}, width] and jaxpar.models.base.Aux()."
        )
    x, _ = found
    if not _fits(x, B, T, 1):
        raise UserError(
            f"{name}.__call__ of tokens [{B}, {T}] returns {_described(x)} first; that "
            f"must be activations [{B}, {T}, width] of a floating-point type."
        )
    with explained(f"{name}.unembed of {_described(x)}"):
        logits = model.unembed(x)
    if not _fits(logits, B, T, V):
        raise UserError(
            f"{name}.unembed of {_described(x)} returns {_described(logits)}; it must "
            f"return logits [{B}, {T}, {V}] of a floating-point type, for {V} is the "
            "vocab_size (or more, if those of padding are -inf)."
        )


def _fits(x: Any, B: int, T: int, least: int) -> bool:
    """Whether it is [B, T, least or more] of a floating-point type."""
    if not isinstance(x, jax.Array) or not jnp.issubdtype(x.dtype, jnp.floating):
        return False
    return x.ndim == 3 and x.shape[:2] == (B, T) and x.shape[2] >= least


def _described(value: Any) -> str:
    """An array's type and shape; of a tuple those in it; else the class."""
    if isinstance(value, jax.Array):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a tuple of {len(value)} ({', '.join(map(_described, value))})"
    return type(value).__name__
