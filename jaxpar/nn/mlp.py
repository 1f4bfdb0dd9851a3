"""The position-wise multilayer perceptron."""

import dataclasses

import jax
from flax import nnx

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
    """Width, activation, and whether a gate multiplies it (SwiGLU: silu, gated)."""

    d_mlp: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise UserError(
                f"activation={self.activation!r}; there are {', '.join(ACTIVATIONS)}."
            )


class MLP(nnx.Module):
    """w_down(act(w_up x)), or w_down(act(w_gate x) * w_up x) where gated."""

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

    def __call__(self, x: jax.Array) -> jax.Array:
        act = ACTIVATIONS[self.config.activation]
        into = [self.w_up, self.w_gate] if self.config.gated else [self.w_up]
        up_BTF, *gate = dense_each(x, *(("BTD,DF->BTF", w) for w in into))
        if self.config.bias:
            up_BTF = add_bias(up_BTF, self.b_up)
        if gate:
            hidden_BTF = act(wide(gate[0])).astype(x.dtype) * up_BTF
        else:
            hidden_BTF = act(wide(up_BTF)).astype(x.dtype)
        hidden_BTF = constrain(hidden_BTF, "batch", "seq", "mlp")
        out = dense("BTF,FD->BTD", note("mlp/hidden", hidden_BTF), self.w_down)
        if self.config.bias:
            out = add_bias(out, self.b_down)
        return note("mlp/out", constrain(out, "batch", "seq", "embed"))
