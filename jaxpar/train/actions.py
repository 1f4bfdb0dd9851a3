"""What an event may ask of the loop: to stop, or to let the learning rate decay."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stop:
    """Ends the run at this step, and says why."""

    reason: str


@dataclasses.dataclass(frozen=True)
class StartDecay:
    """Lets the learning rate decay from this step on."""


Action = Stop | StartDecay | None
