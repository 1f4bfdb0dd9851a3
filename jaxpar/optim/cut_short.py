"""What is said where a run ends before its learning rate's decay does."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxpar.optim.optimizer import OptimConfig
from jaxpar.optim.schedule import NEVER


def cut_short(optim: OptimConfig, num_steps: int) -> str:
    """At what fraction of its peak the rate ends, and what to type; else "".

    The schedule, which may be the user's own, is asked for its end and its values.
    """
    schedule = optim.schedule
    ends = schedule.ends(NEVER)
    if ends is None or ends <= num_steps:
        return ""
    rates = jax.vmap(lambda step: schedule(step, jnp.int32(NEVER)))(jnp.arange(ends))
    typed = f"--num-steps {ends}"
    decay = max(num_steps - (ends - optim.decay_steps), 0)
    shorter = dataclasses.replace(optim, decay_steps=decay)
    if shorter.schedule.ends(NEVER) == num_steps:
        typed += f", or, as another run, --optim.decay-steps {decay}"
    return (
        f"The learning rate's decay ends at step {ends}, after num_steps={num_steps}: "
        f"it will be at {float(rates[num_steps - 1] / jnp.max(rates)):.0%} of its peak "
        f"when the run ends; {typed} ends both together."
    )
