"""Learning-rate schedule: warm-up, constant, decay, as a function of the step."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

NEVER = 2**31 - 1
"""`decay_from` while no stopping rule has begun the decay: the largest int32."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then a constant rate, then a decay to `final` x peak_lr.

    The update from step i to i + 1 uses schedule(i). The warm-up's first update is at
    peak_lr / warmup_steps, not at zero. The decay is a half cosine (Loshchilov and
    Hutter, 2017) or linear (Hu et al., 2024: warm-up, stable, decay). Its first update
    is already below the peak; its last one, before the step `ends`, is at
    `final` x peak_lr.

    A schedule of one's own has the same `__call__` and `ends`, and is asked only these.

    `decay_from` is the step at which a stopping rule begins the decay, NEVER where
    none has; if the decay is planned earlier, the plan counts.
    """

    peak_lr: float
    """Highest learning rate."""
    warmup_steps: int
    """Steps of the linear warm-up."""
    stable_steps: int
    """Steps at peak_lr after the warm-up; -1: until `decay_from`."""
    decay_steps: int
    """Steps from the decay's first one to its last."""
    final: float
    """Rate after the decay, as a fraction of peak_lr."""
    shape: str
    """Of the decay: cosine or linear."""

    def __call__(self, step: ArrayLike, decay_from: ArrayLike = NEVER) -> jax.Array:
        """The learning rate of a step, in float32."""
        step = jnp.asarray(step, jnp.float32)
        start = self.start(decay_from)
        warmup = (step + 1) / max(self.warmup_steps, 1)
        done = jnp.clip((step - start + 1) / max(self.decay_steps, 1), 0.0, 1.0)
        left = (
            1 - done if self.shape == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * done))
        )
        fraction = jnp.minimum(warmup, self.final + (1 - self.final) * left)
        return (self.peak_lr * fraction).astype(jnp.float32)

    def start(self, decay_from: ArrayLike) -> jax.Array:
        """The step at which the decay begins; NEVER while that is not known."""
        return jnp.minimum(decay_from, self._planned_start)

    @property
    def waits(self) -> bool:
        """Whether the decay begins only when a stopping rule begins it."""
        return self.stable_steps < 0

    def ends(self, decay_from: int = NEVER) -> int | None:
        """The step at which the decay is over; None while that is not known."""
        start = min(int(decay_from), self._planned_start)
        return None if start == NEVER else start + self.decay_steps

    @property
    def _planned_start(self) -> int:
        return NEVER if self.waits else self.warmup_steps + self.stable_steps
