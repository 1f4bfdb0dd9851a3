"""Actions that an event may ask of the loop: to stop, or to start the decay."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stop:
    """Ends the run after this step."""

    reason: str
    """Why, as the run reports it."""


@dataclasses.dataclass(frozen=True)
class StartDecay:
    """Begins the learning rate's decay at this step."""


Action = Stop | StartDecay | None
"""None lets training go on unchanged."""
