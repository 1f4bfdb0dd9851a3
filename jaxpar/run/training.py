"""Training inside a run directory, from the start or from the newest checkpoint."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxpar.checkpoint import verified
from jaxpar.checkpoint.verified import Check
from jaxpar.data.prepare import in_words
from jaxpar.data.same_data import learned_before, prepare_together
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.guard import phases, stopping
from jaxpar.guard.stopping import StopRequest, Unsaved
from jaxpar.guard.time_recorder import TimeRecorder
from jaxpar.models.describe import kernels_said
from jaxpar.partition import cluster
from jaxpar.partition.layout import Placed
from jaxpar.run.directory import RunDir
from jaxpar.run.fitting import Steps, fit_run, make_steps, outcome_of
from jaxpar.run.formats import E
from jaxpar.run.next_commands import next_commands
from jaxpar.run.opening import tokenizer_of
from jaxpar.run.origin import Origin
from jaxpar.run.outcome import Outcome, why_finished
from jaxpar.run.own_events import OwnEvents, require_events
from jaxpar.run.rewind import go_back
from jaxpar.run.session import Session, claimed, refuse_misfits
from jaxpar.run.time_file import kept_in
from jaxpar.train import out_of_memory
from jaxpar.train.spikes import GoBack
from jaxpar.train.state import TrainState


def train_run(
    experiment: E,
    begin: Callable[[E], TrainState],
    *,
    run_dir: RunDir,
    placed: Placed,
    source_file: Path | None = None,
    tokenizer: Tokenizer | None = None,
    start_from: Origin | None = None,
    imports: Sequence[Path] = (),
    check: Check | None = None,
    events: OwnEvents = (),
) -> Outcome:
    """Trains to the end in a run directory, from its newest checkpoint or `begin()`.

    source_file: the experiment's file, kept as a receipt. tokenizer: the source run's,
    of a fine-tune; start_from: which run that is, and its step; imports: the files that
    define its classes. check: how a checkpoint is verified before it is read.

    Raises:
      UserError: whatever can be refused, before data is read where that is possible.
      NoUsableCheckpoint: it has trained before, and no checkpoint of it can be read.
    """
    time = TimeRecorder()
    asked, experiment = experiment, run_dir.resumed(experiment)
    if experiment != asked:
        cluster.print_once(
            f"{run_dir.path} was started by an older jaxpar, which read these files as "
            "plain text; it goes on with that."
        )
    experiment.recipe().abstract(placed.layout)
    refuse_misfits(experiment)
    require_events(events)
    run_dir.require_writable()
    if tokenizer is None and (sessions := run_dir.receipt.sessions()):
        tokenizer = learned_before(experiment.data, sessions[-1], run_dir.tokenizer_dir)
    with phases.doing("prepare"):
        prepared = prepare_together(lambda: experiment.data.prepare(tokenizer))
    refuse_misfits(experiment, prepared)
    cluster.print_once(in_words(prepared.description), file=sys.stderr)
    session = Session(
        experiment, run_dir, placed, prepared, check or Check(), time, events
    )
    files = [file for file in (source_file, *imports) if file is not None]
    with (
        claimed(session, files, source_file=source_file, start_from=start_from),
        kept_in(session.time, run_dir.receipt, run_dir.metrics_path),
        stopping.for_loop() as request,
    ):
        kernels = kernels_said(experiment.model, placed, experiment.precision)
        cluster.print_once("\n".join([str(session), *kernels]), file=sys.stderr)
        try:
            outcome = _train(session, lambda: begin(experiment), request)
        finally:
            request.unsaved = Unsaved.NOTHING
    return dataclasses.replace(outcome, commands=next_commands(session, files))


def _train(
    session: Session, begin: Callable[[], TrainState], request: StopRequest
) -> Outcome:
    """Trains a claimed run, back to an earlier step where a loss spike asks for it."""
    experiment, steps = session.experiment, make_steps(session)
    while True:
        try:
            with out_of_memory.explained(
                experiment.recipe().target(session.placed),
                rows=experiment.data.batch_size,
                microbatches=experiment.microbatches,
            ):
                return _train_from_newest(session, begin, steps, request)
        except GoBack as needed:  # In all processes: each has the same losses.
            go_back(session.run_dir, needed, session.check)


def _train_from_newest(
    session: Session,
    begin: Callable[[], TrainState],
    steps: Steps,
    request: StopRequest,
) -> Outcome:
    """Trains from the newest checkpoint, or from the beginning.

    Raises:
      GoBack: it has to be called again, after jaxpar.run.rewind.go_back.
    """
    experiment, run_dir = session.experiment, session.run_dir
    with phases.doing("restore"):
        newest = verified.resumable(run_dir.checkpoints_dir, session.check)
    if newest is None:
        run_dir.require_nothing_saved()
    data = session.prepared.description
    bound = {"tokenizer": data["tokenizer"], "data": data["content"]}
    with contextlib.closing(
        run_dir.checkpoints(keep=experiment.keep, read_only=False, bound=bound)
    ) as checkpoints:
        if newest is None:
            return fit_run(
                session,
                checkpoints,
                begin(),
                None,
                steps,
                request,
                events=session.events,
            )
        tokenizer_of(run_dir, newest, checkpoints.bound(newest))
        memory = checkpoints.memory(newest)
        if why := why_finished(experiment, newest, memory):
            why = f"nothing left to do: {why}"
            return outcome_of(session, newest, why, memory, interrupted=False)
        cluster.print_once(f"Resuming {run_dir.path} at step {newest}.")
        recipe = experiment.recipe()
        with phases.doing("restore"):
            target = recipe.target(session.placed)
            state, memory = checkpoints.restore(newest, target)
            state = recipe.to_stored(session.placed, state)
        return fit_run(
            session, checkpoints, state, memory, steps, request, events=session.events
        )
