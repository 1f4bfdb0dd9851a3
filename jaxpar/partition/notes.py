"""Named activations, for rematerialisation by name and for recording their values.

A model calls `note("attn/out", x)`. Inside `recording()` the value is kept as well, so
that a caller can return it from the traced function.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import get_opaque_trace_state


class Notes:
    """The activations noted in one trace, in order.

    A name that occurs again gets a number (`attn/out#2`). Nothing is kept from traces
    inside it (the body of a loop, a custom derivative): those values could not leave
    them. `nn.stack.scan` therefore returns what its blocks noted.
    """

    def __init__(self):
        self.found: dict[str, jax.Array] = {}
        self._trace = get_opaque_trace_state()

    @property
    def is_current(self) -> bool:
        """Whether JAX is tracing what these notes belong to, not a trace inside it."""
        return self._trace == get_opaque_trace_state()

    def take(self, name: str, x: jax.Array) -> None:
        """Keeps an activation."""
        times = sum(known.partition("#")[0] == name for known in self.found)
        self.found[f"{name}#{times + 1}" if times else name] = x


_notes: contextvars.ContextVar[Notes | None] = contextvars.ContextVar(
    "notes", default=None
)


@contextlib.contextmanager
def recording() -> Iterator[Notes]:
    """Records what the current trace notes; the caller returns it as an output."""
    notes = Notes()
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def recorded() -> Notes | None:
    """The notes of the current trace; None where it is not recorded."""
    notes = _notes.get()
    return notes if notes is not None and notes.is_current else None


def note(name: str, x: jax.Array) -> jax.Array:
    """Names an activation, and keeps it where the trace is recorded; returns x."""
    notes = recorded()
    if notes is not None:
        notes.take(name, x)
    return checkpoint_name(x, name)
