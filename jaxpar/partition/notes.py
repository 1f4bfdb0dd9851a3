"""Named activations: for rematerialisation by name, and for whoever records them."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import get_opaque_trace_state


class Notes:
    """What was noted in one trace, in order; a name that returns gets a number.

    Of a trace within it (a loop's body, a custom rule) nothing is taken: its values
    could not leave it. `nn.stack.scan` hands on what its blocks noted.
    """

    def __init__(self):
        self.found: dict[str, jax.Array] = {}
        self._trace = get_opaque_trace_state()

    @property
    def open(self) -> bool:
        """Whether the trace at hand is the one whose notes are taken."""
        return self._trace == get_opaque_trace_state()

    def take(self, name: str, x: jax.Array) -> None:
        times = sum(known.partition("#")[0] == name for known in self.found)
        self.found[f"{name}#{times + 1}" if times else name] = x


_notes: contextvars.ContextVar[Notes | None] = contextvars.ContextVar(
    "notes", default=None
)


@contextlib.contextmanager
def recording() -> Iterator[Notes]:
    """Takes down what is noted in this trace; the caller returns it as an output."""
    notes = Notes()
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def recorded() -> Notes | None:
    """Where a note goes in the trace at hand; None where nobody records it."""
    notes = _notes.get()
    return notes if notes is not None and notes.open else None


def note(name: str, x: jax.Array) -> jax.Array:
    """Names an activation: for rematerialisation by name, and for who records."""
    notes = recorded()
    if notes is not None:
        notes.take(name, x)
    return checkpoint_name(x, name)
