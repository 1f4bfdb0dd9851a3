"""The feed-forward block as a mixture of experts."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxpar.config import require_positive
from jaxpar.errors import UserError
from jaxpar.experts.grouped_matmul import (
    EQUAL,
    GroupedMatmul,
    grouped_matmul,
    project_groups,
)
from jaxpar.experts.router import (
    Report,
    RouterConfig,
    Routing,
    choose,
    report,
    slots_of_rows,
)
from jaxpar.experts.token_exchange import NOWHERE, dropless, in_slots
from jaxpar.nn.linear import project
from jaxpar.nn.mlp import MLP, MLPConfig, hidden_of
from jaxpar.nn.param import constant, fan_in, param
from jaxpar.partition.collectives import local
from jaxpar.partition.notes import note
from jaxpar.partition.precision import wide, wide_type
from jaxpar.partition.sharding import (
    axis_names,
    constrain,
    current_precision,
    gather,
)

ROWS = ("batch", "seq", "embed")


@dataclasses.dataclass(frozen=True)
class Experts:
    """What some blocks of a model have in place of one MLP."""


@dataclasses.dataclass(frozen=True)
class NoExperts(Experts):
    """Nothing: each block has its MLP."""


@dataclasses.dataclass(frozen=True)
class MoEConfig(Experts):
    """A mixture of experts: MLPs of which each token goes through a few."""

    n_experts: int
    """Experts of each such block; a token goes to router.top_k of them."""
    expert: MLPConfig
    """Form and size of each expert; they have no biases."""
    router: RouterConfig = RouterConfig()
    """How tokens choose their experts."""
    n_shared_experts: int = 0
    """Experts that every token goes through besides, as one MLP so many times as wide
    as an expert."""
    capacity_factor: float = 0.0
    """Slots that a row has in each expert, as a multiple of what it fills on average;
    choices beyond are dropped. 0: none are dropped, however they are spread."""
    buffer_factor: float = 0.0
    """Without a capacity, with expert=E: room for what a device sends to each other
    one, as a part of the most that can happen; what exceeds it is dropped, counted, and
    so is no longer the same on every layout. 0: room for all."""

    def __post_init__(self):
        require_positive(self, "n_experts")
        if self.n_shared_experts < 0:
            raise UserError(
                f"n_shared_experts={self.n_shared_experts}: 0 (none) or more."
            )
        if self.router.top_k > self.n_experts:
            raise UserError(
                f"top_k={self.router.top_k} experts of each token, but n_experts="
                f"{self.n_experts}; write router.top_k={self.n_experts} or less."
            )
        if self.expert.bias:
            raise UserError("Experts have no biases; write expert.bias=False.")
        if self.capacity_factor < 0:
            raise UserError(
                f"capacity_factor={self.capacity_factor}: a multiple of the mean load, "
                "such as 1.25; 0 drops nothing."
            )
        if not 0 <= self.buffer_factor <= 1:
            raise UserError(
                f"buffer_factor={self.buffer_factor}: a part of 1; 0 has room for all."
            )
        if self.buffer_factor and self.capacity_factor:
            raise UserError(
                f"buffer_factor={self.buffer_factor} is of dropless experts, and "
                f"capacity_factor={self.capacity_factor} gives them slots; make one of "
                "them 0."
            )


class MoE(nnx.Module):
    """sum_j gate_j expert_j(x) over the chosen experts, and shared(x) if there is one.

    Its parameters have the names and paths of an MLP's, with an axis of experts.
    """

    def __init__(self, config: MoEConfig, d_embed: int, gain: float, rngs: nnx.Rngs):
        self.config = config
        D, F, E = d_embed, config.expert.d_mlp, config.n_experts
        # No layout splits the router's experts: each device chooses among all.
        self.w_router = param(rngs, fan_in("embed"), embed=D, experts_=E)
        if config.router.bias:
            rate = config.router.bias_update_rate
            self.router_bias = param(rngs, constant(0.0), moved_by=rate, experts_=E)
        self.w_up = param(rngs, fan_in("embed"), experts=E, embed=D, mlp=F)
        if config.expert.gated:
            self.w_gate = param(rngs, fan_in("embed"), experts=E, embed=D, mlp=F)
        self.w_down = param(rngs, fan_in("mlp", gain=gain), experts=E, mlp=F, embed=D)
        if config.n_shared_experts:
            width = config.n_shared_experts * F
            wide_as_all = dataclasses.replace(config.expert, d_mlp=width)
            self.shared = MLP(wide_as_all, D, gain, rngs)

    def __call__(
        self, x: Float[Array, "B T D"], valid: jax.Array
    ) -> tuple[Float[Array, "B T D"], Report]:
        """valid [B, T]: which tokens are no padding; the others get no expert."""
        config = self.config
        logits = note("moe/logits", self._logits(x))
        bias = None
        if config.router.bias:
            bias = jax.lax.stop_gradient(gather(self.router_bias))
        routing = choose(logits, bias, valid, config.router)
        y, dropped = self._mixed(x, routing)
        y = note("moe/out", y)
        if config.n_shared_experts:
            y = y + self.shared(x)
        return y, report(logits, routing, dropped, valid, config.router)

    def _logits(self, x: jax.Array) -> jax.Array:
        names = axis_names(self.w_router)
        dtype = wide_type(current_precision().compute)
        w = self.w_router[...]
        (logits,) = project(x, ROWS[:2], [w], [names], result=dtype)
        return constrain(logits, "batch", "seq", "experts_")

    def _mixed(self, x: jax.Array, routing: Routing) -> tuple[jax.Array, jax.Array]:
        """What the experts make of the tokens, and which choices were dropped."""
        config, E = self.config, self.config.n_experts
        slots, n_slots = routing.experts, 0
        if config.capacity_factor:
            slots, n_slots = slots_of_rows(
                routing.experts, n_experts=E, capacity=config.capacity_factor
            )
        ws = [self.w_up, self.w_down]
        if config.expert.gated:
            ws.append(self.w_gate)
        names = [axis_names(w) for w in ws]

        def of_device(together, x, experts, gates, slots, *ws):
            matmul = EQUAL if config.capacity_factor else grouped_matmul()

            def run(rows, sizes):
                return _expert(rows, sizes, ws, names, config.expert, matmul)

            if config.capacity_factor:
                y = in_slots(
                    together, x, experts, slots, run, n_experts=E, n_slots=n_slots
                )
                dropped = (slots == NOWHERE) & (experts != NOWHERE)
            else:
                rows, k = x.reshape(-1, x.shape[-1]), experts.shape[-1]
                y, dropped = dropless(
                    together,
                    rows,
                    experts.reshape(-1, k),
                    run,
                    n_experts=E,
                    buffer_factor=config.buffer_factor,
                )
                y = y.reshape(*experts.shape, -1)
                dropped = dropped.reshape(experts.shape)
            y = jnp.einsum("btkd,btk->btd", wide(y), gates.astype(wide(y).dtype))
            # The axis of shards keeps the sum over pieces of the hidden layer open.
            return y.astype(x.dtype)[None], dropped

        choices = ("batch", "seq", None)
        run = local(
            of_device,
            in_axes=(ROWS, choices, choices, choices),
            out_axes=(("mlp", *ROWS), choices),
            over="experts",
            params=names,
        )
        weights = (w[...] for w in ws)
        y, dropped = run(x, routing.experts, routing.gates, slots, *weights)
        # Not jnp.sum, which would send float32 where the computation is narrower.
        return constrain(jax.lax.reduce_sum(y, (0,)), *ROWS), dropped


def _expert(
    x: Float[Array, "M D"],
    sizes: jax.Array,
    ws: Sequence[jax.Array],
    names: Sequence[tuple[str, ...]],
    config: MLPConfig,
    matmul: GroupedMatmul,
) -> Float[Array, "M D"]:
    """The MLPs of this device's experts, on the rows of each."""
    w_up, w_down, *w_gate = ws
    of_up, of_down, *of_gate = names
    up, *gate = project_groups(
        x, sizes, [w_up, *w_gate], [of_up, *of_gate], matmul=matmul
    )
    hidden = hidden_of(config, up.dtype, up, *gate)
    (y,) = project_groups(hidden, sizes, [w_down], [of_down], matmul=matmul)
    return y
