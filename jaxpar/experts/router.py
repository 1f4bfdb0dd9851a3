"""The router: which experts a token goes to, with what weight, and what it reports."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxpar.errors import UserError
from jaxpar.experts.token_exchange import NOWHERE
from jaxpar.nn.sequence import own_tokens, sum_of_row, whole_rows

SCORES = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class RouterConfig:
    """How tokens choose experts, and what keeps the experts' loads alike."""

    top_k: int = 2
    """Experts of each token."""
    score_function: str = "softmax"
    """What the router's logits become: softmax over all experts, or sigmoid of each."""
    norm_top_k: bool = True
    """Whether the gates of a token's experts are divided by their sum."""
    scaling_factor: float = 1.0
    """What gates are multiplied by, normalised or not."""
    balance_loss_coef: float = 0.01
    """Coefficient of the load-balancing loss of each layer, in the training loss; it is
    that of single rows (sequences)."""
    z_loss_coef: float = 0.001
    """Coefficient of the router z-loss of each layer, in the training loss."""
    bias: bool = False
    """Whether experts have a bias that counts in their choice alone, not in gates
    (balance without an auxiliary loss: Wang et al., 2024)."""
    bias_update_rate: float = 0.001
    """What each step adds to the bias of experts with fewer tokens than the mean, and
    takes from the others; 0 leaves it as it is, as optim.freeze does."""

    def __post_init__(self):
        if self.top_k < 1:
            raise UserError(f"top_k={self.top_k}: a token needs 1 expert or more.")
        if self.score_function not in SCORES:
            raise UserError(
                f"score_function={self.score_function!r}; there are "
                f"{', '.join(SCORES)}."
            )
        if self.top_k == 1 and self.norm_top_k:
            raise UserError(
                "top_k=1 with norm_top_k=True: the one gate is always 1, so the router "
                "learns nothing from the tokens; write norm_top_k=False."
            )
        for name in ("balance_loss_coef", "z_loss_coef", "bias_update_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}={getattr(self, name)}: 0 (off) or more.")
        if not 0 < self.scaling_factor < math.inf:
            raise UserError(f"scaling_factor={self.scaling_factor} must be above 0.")


class Routing(NamedTuple):
    """What the router has chosen for each token."""

    experts: Int[Array, "B T k"]
    """Numbers of experts; NOWHERE where the token is padding."""
    gates: Float[Array, "B T k"]
    """What each of them is weighed by; no less than float32."""


class Report(NamedTuple):
    """What the router of a layer reports of each row [B]; stacked, [L, B]."""

    loss: Float[Array, " B"]
    """Balance loss and z-loss, times their coefficients: a mean over the row's tokens,
    which weighs as much as they do."""
    balance: Float[Array, " B"]
    """The balance loss alone, without its coefficient; 1 where loads are alike."""
    tokens: Int[Array, " B"]
    """Tokens, of those that this device has; so are the following."""
    entropy: Float[Array, " B"]
    """Sum over tokens of the entropy of their scores, in nats."""
    dropped: Int[Array, " B"]
    """Choices that were not computed, for want of room."""
    load: Int[Array, "B E"]
    """Choices of each expert, dropped ones included."""


def choose(
    logits: Float[Array, "B T E"],
    bias: Float[Array, " E"] | None,
    valid: Bool[Array, "B T"],
    config: RouterConfig,
) -> Routing:
    """The top k experts of each token, and their weights."""
    scores = _scores(logits, config)
    ranked = scores if bias is None else scores + bias[None, None]
    _, experts = jax.lax.top_k(jax.lax.stop_gradient(ranked), config.top_k)
    # Not by indexing, whose gradient would be added up in an order of its own.
    chosen = _one_hot(experts, logits.shape[-1], scores.dtype)
    gates = jnp.sum(chosen * scores[:, :, None], axis=-1)
    if config.norm_top_k:
        gates = gates / _sum_of(gates)
    gates = gates * config.scaling_factor
    return Routing(jnp.where(valid[..., None], experts, NOWHERE), gates)


def report(
    logits: Float[Array, "B T E"],
    routing: Routing,
    dropped: Bool[Array, "B T k"],
    valid: Bool[Array, "B T"],
    config: RouterConfig,
) -> Report:
    """What keeps the experts' loads alike, and what is counted, of each row.

    The balance loss is that of one row (DeepSeek-V3, arXiv 2412.19437, equations 17 to
    20): with E experts, k choices, and over the row's tokens the part f_e of choices of
    expert e and the mean p_e of its score, relative to the token's other scores, it is
    E sum_e f_e p_e. (There f_e is of choices without the bias, here of those made.) The
    z-loss is the mean squared logsumexp of the logits (Zoph et al., 2022, equation 5).
    Padding counts nowhere.
    """
    n_experts, counts = logits.shape[-1], valid.astype(logits.dtype)
    scores = _scores(logits, config)
    parts = scores / _sum_of(scores)
    load = jnp.sum(_one_hot(routing.experts, n_experts, jnp.int32), axis=(1, 2))
    tokens = jnp.maximum(sum_of_row(jnp.sum(counts, axis=1)), 1)
    f = sum_of_row(load).astype(logits.dtype) / (tokens * config.top_k)[:, None]
    p = sum_of_row(jnp.einsum("bt,bte->be", counts, parts)) / tokens[:, None]
    balance = n_experts * jnp.sum(f * p, axis=-1)
    squared = jax.nn.logsumexp(logits, axis=-1) ** 2
    z = sum_of_row(jnp.sum(counts * squared, axis=1)) / tokens
    log_parts = jnp.log(jnp.maximum(parts, jnp.finfo(parts.dtype).tiny))
    entropy = -jnp.sum(jnp.where(parts > 0, parts * log_parts, 0), axis=-1)
    return Report(
        loss=config.balance_loss_coef * balance + config.z_loss_coef * z,
        balance=balance,
        tokens=jnp.sum(valid, axis=1, dtype=jnp.int32),
        entropy=jax.lax.stop_gradient(jnp.sum(counts * entropy, axis=1)),
        dropped=jnp.sum(dropped, axis=(1, 2), dtype=jnp.int32),
        load=load,
    )


def slots_of_rows(
    experts: Int[Array, "B T k"], *, n_experts: int, capacity: float
) -> tuple[Int[Array, "B T k"], int]:
    """The slot of each choice among those of its row and expert, and their number.

    Each row has ceil(capacity x T k / E) slots of each expert, T being its length: so
    it is computed alike in whatever batch. First choices come before second ones, and
    earlier tokens before later ones (Lepikhin et al., 2021, algorithm 1); a choice for
    which no slot is left has NOWHERE.
    """
    rows = whole_rows(experts)
    _, T, k = rows.shape
    n_slots = min(T, math.ceil(capacity * T * k / n_experts))
    in_turn = jnp.moveaxis(rows, 2, 1).reshape(len(rows), -1, 1)
    rank = jnp.moveaxis(_ranks(in_turn, n_experts).reshape(-1, k, T), 1, 2)
    kept = own_tokens(rank < n_slots, experts.shape[1])
    experts = jnp.where(kept, experts, NOWHERE)
    # Where devices have pieces of a row, each counts the slots that it fills itself.
    own = min(n_slots, experts.shape[1])
    return jnp.where(experts == NOWHERE, NOWHERE, _ranks(experts, n_experts)), own


def _ranks(experts: Int[Array, "B T k"], n_experts: int) -> Int[Array, "B T k"]:
    """How many choices of the same row and expert come before each choice."""
    B, T, k = experts.shape
    chosen = _one_hot(experts.reshape(B, T * k), n_experts, jnp.int32)
    before = jnp.cumsum(chosen, axis=1) - chosen
    return jnp.sum(before * chosen, axis=-1).reshape(B, T, k)


def _sum_of(scores: jax.Array) -> jax.Array:
    """The sum over experts, above 0: the least sigmoids are 0 in floating point."""
    least = jnp.finfo(scores.dtype).tiny
    return jnp.maximum(jnp.sum(scores, axis=-1, keepdims=True), least)


def _scores(logits: jax.Array, config: RouterConfig) -> jax.Array:
    softmax = config.score_function == "softmax"
    return jax.nn.softmax(logits, axis=-1) if softmax else jax.nn.sigmoid(logits)


def _one_hot(experts: jax.Array, n_experts: int, dtype) -> jax.Array:
    """[..., E]: 1 at the chosen expert, nothing at all for NOWHERE."""
    return jax.nn.one_hot(experts, n_experts, dtype=dtype)
