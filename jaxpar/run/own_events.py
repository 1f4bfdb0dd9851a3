"""Events of the user's own: made for a run, checked, and run untimed."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

from jaxpar.data.tokenizer import Tokenizer
from jaxpar.errors import UserError
from jaxpar.experiment import Experiment
from jaxpar.guard import phases
from jaxpar.partition.layout import Placed
from jaxpar.train.actions import Action, StartDecay, Stop
from jaxpar.train.events import Write
from jaxpar.train.loop import Event, History
from jaxpar.train.state import TrainState

ARGUMENTS = {"due": ("step", "history"), "run": ("step", "state", "history")}


@dataclasses.dataclass(frozen=True)
class Running:
    """What an event of the user's own may know of the run in which it takes part."""

    experiment: Experiment
    placed: Placed
    """Where the state is: the layout, on devices, in its order (Recipe.to_natural)."""
    tokenizer: Tokenizer
    write_row: Write
    """Writes a row of metrics, in process 0."""

    def write(self, step: int, name: str, **values: Any) -> None:
        """Writes numbers and texts to metrics.jsonl, TensorBoard and the terminal.

        Every process may call it; process 0 writes. name: the row's `split`.
        """
        if name in ("train", "heldout"):
            raise UserError(f"{name!r} is a name of the run's own rows; take another.")
        self.write_row({"step": step, "split": name, **values})


Make = Callable[[Running], Event]
OwnEvents = Sequence[Event | Make] | Callable[[Running], Sequence[Event | Make]]
"""Events, and functions or classes that make one of the run; or what returns these."""


def require_events(events: OwnEvents) -> None:
    """Refuses what is no event (UserError), before anything is compiled."""
    if callable(events):
        _require_takes_run(events)
    else:
        _require_list(events)


def _require_list(events: Any) -> None:
    if not isinstance(events, Sequence) or isinstance(events, str):
        raise UserError(
            f"events is a {type(events).__name__}; it must be a list of events, or a "
            "function of the run that returns one."
        )
    for event in events:
        if _makes_event(event):
            _require_takes_run(event)
        else:
            _require_event(event)


def make_events(events: OwnEvents, running: Running) -> list[Event]:
    """The events for a run, each of which runs untimed; refuses what is none."""
    if callable(events):
        events = events(running)
        _require_list(events)
    made: list[Event] = []
    for given in events:
        event: Any = given(running) if _makes_event(given) else given
        _require_event(event)
        made.append(_Untimed(event))
    return made


class _Untimed(Event):
    """Another event, whose time is not that of the steps."""

    def __init__(self, event: Event):
        self._event = event

    def due(self, step: int, history: History) -> bool:
        return bool(self._event.due(step, history))

    def run(self, step: int, state: TrainState, history: History) -> Action:
        # Like an evaluation it is work between steps; it has no phase of its own.
        with history.untimed(), phases.doing("evaluate"):
            action = self._event.run(step, state, history)
        if action is not None and not isinstance(action, Stop | StartDecay):
            raise UserError(
                f"{type(self._event).__name__}.run returned {action!r}; it must be "
                "None, Stop(reason) or StartDecay()."
            )
        return action


def _makes_event(event: Any) -> TypeGuard[Make]:
    is_event = isinstance(event, Event) and not isinstance(event, type)
    return callable(event) and not is_event


def _require_takes_run(make: Any) -> None:
    """Refuses a function or class that cannot be called with the run alone."""
    name = getattr(make, "__name__", type(make).__name__)
    if why := _refusal(make, ("running",)):
        raise UserError(
            f"{name} is called with the run, to make events, and does not take it: "
            f"{why}. Write {name}(running), or give an event that is made already."
        )


def _require_event(event: Any) -> None:
    name = type(event).__name__
    for method, arguments in ARGUMENTS.items():
        found, expected = getattr(event, method, None), f"({', '.join(arguments)})"
        if found is None:
            wrong = f"{name} has no method {method}{expected}"
        elif why := _refusal(found, arguments):
            wrong = f"{name} must have {method}{expected}: {why}"
        else:
            continue
        raise UserError(f"An event has due and run; {wrong}.")


def _refusal(function: Any, arguments: Sequence[str]) -> str:
    """Why a function cannot be called with these arguments; "" where it can."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        return str(error)
    except ValueError:  # Some of Python's own functions have no signature.
        return ""
    return ""
