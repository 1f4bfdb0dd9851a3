"""Learning rates as functions of the step, and of where a decay began."""

import dataclasses

import jax
import jax.numpy as jnp

NEVER = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a constant, then a decay to `final` x peak.

    The update from step i to i + 1 uses schedule(i). The decay begins at
    warmup + stable steps, or where `decay_from` says, whichever is first; with
    stable_steps = -1 it waits for `decay_from`. It is a half cosine (Loshchilov and
    Hutter, 2017) or linear (the D of warm-up, stable, decay: Hu et al., 2024).
    decay_steps counts from where the decay begins: its first update lies below the
    peak already, its last one, before the step `ends`, is at `final` x peak. The first
    update of the warm-up is at peak / warmup_steps, never at zero.
    """

    peak_lr: float
    warmup_steps: int
    stable_steps: int
    decay_steps: int
    final: float
    shape: str

    def __call__(self, step, decay_from=NEVER) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        start = self.start(decay_from)
        warm = (step + 1) / max(self.warmup_steps, 1)
        done = jnp.clip((step - start + 1) / max(self.decay_steps, 1), 0.0, 1.0)
        left = (
            1 - done if self.shape == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * done))
        )
        share = jnp.minimum(warm, self.final + (1 - self.final) * left)
        return (self.peak_lr * share).astype(jnp.float32)

    def start(self, decay_from):
        """The step at which the decay begins."""
        planned = self.warmup_steps + self.stable_steps
        return jnp.minimum(decay_from, NEVER if self.waits else planned)

    @property
    def waits(self) -> bool:
        """Whether the decay begins only when it is told to."""
        return self.stable_steps < 0

    def ends(self, decay_from: int = NEVER) -> int | None:
        """The step at which the decay is over; None while it has not been begun."""
        planned = NEVER if self.waits else self.warmup_steps + self.stable_steps
        start = min(int(decay_from), planned)
        return None if start == NEVER else start + self.decay_steps
