"""The feed-forward block (MLP): its activation functions, with or without a gate."""

import dataclasses

import jax
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxpar.config import require_positive
from jaxpar.errors import UserError
from jaxpar.nn.linear import add_bias, dense, dense_each
from jaxpar.nn.param import constant, fan_in, param
from jaxpar.partition.notes import note
from jaxpar.partition.precision import wide
from jaxpar.partition.sharding import constrain

ACTIVATIONS = {
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "relu2": lambda x: jax.nn.relu(x) ** 2,
}


@dataclasses.dataclass(frozen=True)
class MLPConfig:
    """Sizes and form of the feed-forward block; SwiGLU is silu, gated."""

    d_mlp: int
    """Width of the hidden layer."""
    activation: str = "silu"
    """Activation function: gelu, silu, or relu2 (ReLU squared)."""
    gated: bool = True
    """Whether the hidden layer is multiplied by a gate, which has its own weight."""
    bias: bool = False
    """Whether the projections up and down have a bias; a gate has none."""

    def __post_init__(self):
        require_positive(self, "d_mlp")
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"activation={self.activation!r}; there are {', '.join(ACTIVATIONS)}."
            )


def hidden_of(
    config: MLPConfig,
    dtype: DTypeLike,
    up: Float[Array, "..."],
    *gate: Float[Array, "..."],
) -> Float[Array, "..."]:
    """The hidden layer, of the projections of its input: up, and the gate if any.

    dtype: that of what the activation function gives.
    """
    act = ACTIVATIONS[config.activation]
    if gate:
        return act(wide(gate[0])).astype(dtype) * up
    return act(wide(up)).astype(dtype)


class MLP(nnx.Module):
    """w_down act(w_up x), or w_down (act(w_gate x) * w_up x) where gated."""

    def __init__(self, config: MLPConfig, d_embed: int, gain: float, rngs: nnx.Rngs):
        self.config = config
        D, F = d_embed, config.d_mlp
        self.w_up = param(rngs, fan_in("embed"), embed=D, mlp=F)
        if config.gated:
            self.w_gate = param(rngs, fan_in("embed"), embed=D, mlp=F)
        self.w_down = param(rngs, fan_in("mlp", gain=gain), mlp=F, embed=D)
        if config.bias:
            self.b_up = param(rngs, constant(0.0), mlp=F)
            self.b_down = param(rngs, constant(0.0), embed=D)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        weights = [self.w_up, self.w_gate] if self.config.gated else [self.w_up]
        up_BTF, *gate = dense_each(x, *(("BTD,DF->BTF", w) for w in weights))
        if self.config.bias:
            up_BTF = add_bias(up_BTF, self.b_up)
        hidden_BTF = hidden_of(self.config, x.dtype, up_BTF, *gate)
        hidden_BTF = constrain(hidden_BTF, "batch", "seq", "mlp")
        out = dense("BTF,FD->BTD", note("mlp/hidden", hidden_BTF), self.w_down)
        if self.config.bias:
            out = add_bias(out, self.b_down)
        return note("mlp/out", constrain(out, "batch", "seq", "embed"))
