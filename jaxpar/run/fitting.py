"""The training loop of a run, from one of its states on: batches, events, rows."""

import contextlib
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jaxpar.checkpoint import failed_saves
from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.data.loader import EvalBatches, batches, eval_batches
from jaxpar.data.order import Skipped
from jaxpar.guard import phases
from jaxpar.guard.stopping import StopRequest, Unsaved
from jaxpar.metrics import sinks
from jaxpar.metrics.flops import training_flops
from jaxpar.metrics.meter import meter_on
from jaxpar.metrics.metrics_file import drop_rows_after, last_evaluation
from jaxpar.metrics.rows import OptionalSink, Rows
from jaxpar.optim.cut_short import cut_short
from jaxpar.optim.select import matching
from jaxpar.partition import cluster
from jaxpar.partition.layout import Layout
from jaxpar.run.divergence import nonfinite_steps
from jaxpar.run.outcome import Outcome, why_ended
from jaxpar.run.own_events import OwnEvents, Running, make_events
from jaxpar.run.rewind import skipped_at
from jaxpar.run.saving import Save
from jaxpar.run.session import Session
from jaxpar.train.events import Decide, Evaluate, Log, require_watched
from jaxpar.train.loop import Event, History, fit
from jaxpar.train.nonfinite import windows_by_step
from jaxpar.train.objective import is_own
from jaxpar.train.replica_check import CheckReplicas
from jaxpar.train.scoring import most_in_flight
from jaxpar.train.spikes import GoBack, Skipping, Spikes, in_turn, pairs
from jaxpar.train.state import TrainState
from jaxpar.train.step import Metrics, make_eval_step, make_forward, make_train_step
from jaxpar.tree import flatten


class Steps(NamedTuple):
    """The compiled steps, made once for a session."""

    train: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    evaluate: Callable[[Any, Any], Metrics]


class Events(NamedTuple):
    """The events of every run, in the order in which they run."""

    log: Log
    evaluate: Evaluate
    decide: Decide
    own: Sequence[Event]
    replicas: CheckReplicas
    save: Save

    @property
    def in_order(self) -> list[Event]:
        """All of them; those of the user's own see what was decided, and are saved."""
        first = (self.log, self.evaluate, self.decide)
        return [*first, *self.own, self.replicas, self.save]


def make_steps(session: Session) -> Steps:
    """The steps of a session's experiment on its devices."""
    experiment, placed = session.experiment, session.placed
    recipe = experiment.recipe()
    train = make_train_step(recipe, placed, **experiment.step_options)
    evaluate = make_eval_step(recipe, placed, exact=experiment.exact)
    return Steps(session.time.timed(train), evaluate)


def fit_run(
    session: Session,
    checkpoints: Checkpoints,
    state: TrainState,
    memory: dict[str, Any] | None,
    steps: Steps,
    request: StopRequest,
    *,
    events: OwnEvents = (),
) -> Outcome:
    """Trains from a state of the run to its end.

    memory: of the checkpoint that the state is from; None at the beginning. events: of
    the user's own.

    Raises:
      GoBack: a loss spike asks for an earlier state.
    """
    experiment, start = session.experiment, int(state.step)
    skipped = skipped_at(session.run_dir, start, memory)
    feed, heldout = _batches(session, start, pairs(skipped), request)
    with contextlib.ExitStack() as stack:
        stack.callback(feed.close)
        rates = _rates(session, steps, state, heldout)
        if not start and (said := cut_short(experiment.optim, experiment.num_steps)):
            cluster.print_once(said, file=sys.stderr)
        rows = _rows(session, start, request)
        stack.callback(rows.close)
        session.time.begin_at(start)
        failed_saves.warn_if_full(checkpoints.directory, state)
        evaluate = _evaluation(session, steps, heldout, rows)
        tokenizer = session.prepared.tokenizer
        running = Running(experiment, session.placed, tokenizer, rows.write)
        own = make_events(events, running)
        found = _events(
            session, checkpoints, evaluate, own, rows, rates, skipped, memory
        )
        behind = found.decide.is_behind(start, int(state.decay_from))
        # A manifest of several processes is written by all, before any goes back.
        stack.enter_context(_saved_first(checkpoints))
        state, history = fit(
            state,
            feed,
            steps.train,
            num_steps=experiment.num_steps,
            events=found.in_order,
            # A signal may have ended the evaluation of the step that was saved.
            first=(evaluate, found.decide, found.save) if behind else (),
        )
        request.unsaved = Unsaved.END
        with phases.doing("save"):
            _finish(state, history, found)
            checkpoints.wait()
        rows.require_written()
    step, ended = int(state.step), history.interrupted
    why = why_ended(experiment, step, history)
    return outcome_of(session, step, why, found.decide.memory, interrupted=ended)


def outcome_of(
    session: Session, step: int, why: str, memory: dict[str, Any], *, interrupted: bool
) -> Outcome:
    """How the session ended at a step; memory: the stopping rule's."""
    return Outcome(
        step,
        why,
        last_evaluation(session.run_dir.metrics_path, up_to=step),
        memory["rule"].get("best"),
        interrupted,
        session.prepared.heldout.xz_nats_per_byte,
        str(session.time.account()),
        session.experiment.stop.unit,
    )


@contextlib.contextmanager
def _saved_first(checkpoints: Checkpoints) -> Iterator[None]:
    """A block that is left by GoBack once every save is on disk."""
    try:
        yield
    except GoBack:
        checkpoints.wait()
        raise


def _batches(
    session: Session, start: int, skipped: Skipped, request: StopRequest
) -> tuple[Generator[dict[str, jax.Array]], EvalBatches]:
    """The batches to train on, from a step on, and those that are held out."""
    experiment, prepared = session.experiment, session.prepared
    row = experiment.objective.row
    sizes = {
        "batch_size": experiment.data.batch_size,
        "placed": session.placed,
        "vocab_size": experiment.model.vocab_size,
        # Of many processes each needs its batches, to reach the call where all stop.
        "give_up": request.asked if cluster.count() == 1 else None,
    }
    feed = batches(
        prepared.train,
        row,
        seed=experiment.seed,
        start=start,
        skipped=skipped,
        **sizes,
    )
    return feed, eval_batches(prepared.heldout, row, **sizes)


def _rates(
    session: Session, steps: Steps, state: TrainState, heldout: EvalBatches
) -> Callable[[sinks.Row], sinks.Row]:
    """Adds tokens per second, MFU and now and then the account of time to a row."""
    experiment, batch = session.experiment, heldout[0]
    frozen = matching(
        experiment.optim.freeze, flatten(state.params), field="optim.freeze"
    )
    if is_own(experiment.objective):
        scored = jax.eval_shape(steps.evaluate, state.params, batch)
        require_watched(experiment.stop, experiment.objective, scored)
    # Without devices attention is in tiles, all of whose products can be counted; on
    # one device there is no room kept for tokens of others, which would count, too.
    forward = make_forward(experiment.recipe(), Layout.parse("data=1"))
    flops = training_flops(forward, state.params, batch, frozen=frozen)
    meter = meter_on(session.placed.mesh.devices.flat, step_flops=flops)
    num_steps = experiment.num_steps

    def with_rates(row: sinks.Row) -> sinks.Row:
        return session.time.add_to(meter(row), last=row["step"] == num_steps)

    return with_rates


def _evaluation(
    session: Session, steps: Steps, heldout: EvalBatches, rows: Rows
) -> Evaluate:
    experiment = session.experiment
    return Evaluate(
        steps.evaluate,
        heldout,
        rows.write,
        every=experiment.eval_every,
        schedule=experiment.optim.schedule,
        n_bytes=session.prepared.heldout.n_bytes,
        objective=type(experiment.objective).__name__,
        in_flight=most_in_flight(session.placed),
    )


def _events(
    session: Session,
    checkpoints: Checkpoints,
    evaluate: Evaluate,
    own: Sequence[Event],
    rows: Rows,
    rates: Callable[[sinks.Row], sinks.Row],
    skipped: list[Skipping],
    memory: dict[str, Any] | None,
) -> Events:
    """The events of a run, with what its checkpoint remembers."""
    experiment = session.experiment
    n_windows = len(session.prepared.train)
    windows_of = windows_by_step(
        experiment.seed, experiment.data.batch_size, n_windows, pairs(skipped)
    )
    spikes = Spikes(
        experiment.on_spike,
        windows_of=windows_of,
        skipped=skipped,
        memory=(memory or {}).get("spikes"),
    )
    nonfinite = nonfinite_steps(experiment, checkpoints, windows_of=windows_of)
    decide = Decide(experiment.stop, evaluate, experiment.optim.schedule, memory)
    replicas = CheckReplicas(every=experiment.check_replicas)
    save = Save(
        checkpoints,
        decide,
        every=experiment.save_every,
        also=lambda: {"spikes": spikes.memory},
        on_error=experiment.on_save_error,
        to_natural=lambda s: experiment.recipe().to_natural(session.placed, s),
        require_equal=replicas.require_equal,
    )
    log = Log(
        rows.write,
        every=experiment.log_every,
        with_rates=rates,
        flush_before=(evaluate, *own, save),
        judge=in_turn(nonfinite.judge, spikes.judge),
    )
    return Events(log, evaluate, decide, own, replicas, save)


def _finish(state: TrainState, history: History, events: Events) -> None:
    """Writes what no event has yet: the last metrics, an interrupted state."""
    step = int(state.step)
    events.log.run(step, state, history)
    # What is on the disk does not tell: a save that has begun may not be there yet.
    if history.interrupted and step != events.save.saved:
        events.save.run(step, state, history)


def _rows(session: Session, start: int, request: StopRequest) -> Rows:
    """Where the run's rows go.

    Only process 0 writes. Rows of steps after `start`, which a killed session did and
    did not save, are removed.
    """
    experiment, run_dir = session.experiment, session.run_dir

    def stop() -> None:
        request.ask("")

    if not cluster.is_first():
        return Rows(None, (), ask_to_stop=stop)
    drop_rows_after(run_dir.metrics_path, start)
    bar = sinks.Progress(experiment.num_steps, start=start, every=experiment.log_every)
    return Rows(
        sinks.JsonlSink(run_dir.metrics_path),
        (
            OptionalSink(sinks.TensorBoardSink(run_dir.tensorboard_dir), "TensorBoard"),
            OptionalSink(bar, "The progress bar"),
        ),
        ask_to_stop=stop,
    )
