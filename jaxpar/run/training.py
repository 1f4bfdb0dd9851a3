"""Training inside a run directory, from the start or from the newest checkpoint."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxpar.checkpoint import verified
from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.checkpoint.verified import Check
from jaxpar.config import to_json
from jaxpar.data.loader import batches, eval_batches
from jaxpar.data.prepare import Prepared
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.errors import UserError
from jaxpar.experiment import Experiment
from jaxpar.metrics import sinks
from jaxpar.metrics.flops import model_flops
from jaxpar.metrics.meter import meter_on
from jaxpar.partition import cluster
from jaxpar.partition.layout import Placed
from jaxpar.run.directory import RunDir
from jaxpar.run.divergence import nonfinite_steps
from jaxpar.run.formats import E
from jaxpar.run.lock import RunLock
from jaxpar.run.metrics_file import drop_rows_after, last_evaluation
from jaxpar.run.opening import tokenizer_of
from jaxpar.run.origin import Origin
from jaxpar.run.outcome import Outcome, why_ended, why_finished
from jaxpar.run.saving import Save
from jaxpar.train.events import Decide, Evaluate, Log
from jaxpar.train.loop import History, fit
from jaxpar.train.state import TrainState
from jaxpar.train.step import make_eval_step, make_train_step


@dataclasses.dataclass(frozen=True)
class Session:
    """An experiment with all that training it takes: where, on what, on which data."""

    experiment: Experiment
    run_dir: RunDir
    placed: Placed
    prepared: Prepared
    check: Check = Check()


def train_run(
    experiment: E,
    begin: Callable[[E], TrainState],
    *,
    run_dir: RunDir,
    placed: Placed,
    source_file: Path | None = None,
    tokenizer: Tokenizer | None = None,
    start_from: Origin | None = None,
    check: Check | None = None,
) -> Outcome:
    """Trains to the end in a run directory, from its newest checkpoint or `begin()`.

    source_file: the experiment's file, kept as a receipt. tokenizer: the source run's,
    of a fine-tune; start_from: which run that is, and its step. check: how a
    checkpoint is verified before it is read.

    Raises:
      UserError: whatever can be refused, before data is read where that is possible.
      NoUsableCheckpoint: it has trained before, and no checkpoint of it can be read.
    """
    asked, experiment = experiment, run_dir.resumed(experiment)
    if experiment != asked:
        cluster.print_once(
            f"{run_dir.path} was started by jaxpar 0.1, which read every file as plain "
            "text; it goes on with that."
        )
    refuse_misfits(experiment)
    experiment.recipe().abstract(placed.layout)
    prepared = cluster.first_then_others(lambda: experiment.data.prepare(tokenizer))
    refuse_misfits(experiment, prepared)
    session = Session(experiment, run_dir, placed, prepared, check or Check())
    with claimed(session, source_file=source_file, start_from=start_from):
        return _train(session, lambda: begin(experiment))


def refuse_misfits(experiment: Experiment, prepared: Prepared | None = None) -> None:
    """Refuses, before anything is compiled, a model that its data does not fit."""
    longest, seq_len = experiment.model.max_positions, experiment.data.seq_len
    if seq_len > longest:
        raise UserError(
            f"data.seq_len={seq_len} is longer than the model's "
            f"max_positions={longest}; shorten the one or raise the other."
        )
    if prepared is None:
        return
    ids, vocabulary = prepared.tokenizer.vocab_size, experiment.model.vocab_size
    if ids > vocabulary:
        raise UserError(
            f"The tokenizer has {ids} ids, the model's vocab_size is {vocabulary}; "
            f"raise model.vocab_size to {ids} or more, or take a smaller tokenizer."
        )


def require_agreement(experiment: Experiment, run_dir: RunDir) -> None:
    """Refuses processes that were given different experiments or directories."""
    text = json.dumps(to_json(experiment), sort_keys=True).encode()
    cluster.require_same(
        experiment=hashlib.sha256(text).hexdigest()[:16], directory=str(run_dir.path)
    )


@contextlib.contextmanager
def claimed(
    session: Session, *, source_file: Path | None, start_from: Origin | None
) -> Iterator[None]:
    """The run's directory, locked for one writer, with its receipt written.

    Process 0 does it for all, and the others check that they see it.
    """
    run_dir, data = session.run_dir, session.prepared.description
    facts = {} if start_from is None else start_from.facts
    cluster.require_same(data=data["content"], tokenizer=data["tokenizer"])
    with contextlib.ExitStack() as stack:
        with cluster.synchronized():
            if cluster.is_first():
                stack.enter_context(RunLock(run_dir.path))
                if run_dir.claim(session.experiment, source_file=source_file):
                    run_dir.receipt.require_same(
                        session.prepared, facts.get("start_from")
                    )
                session.prepared.tokenizer.save(run_dir.tokenizer_dir)
                layout = session.placed.layout.spelling
                run_dir.receipt.add(layout=layout, data=data, **facts)
        with cluster.synchronized():
            if not run_dir.exists():
                raise UserError(
                    f"{run_dir.path}, which process 0 has made, cannot be seen here; "
                    "--run-dir must be on a file system that all processes share."
                )
        yield


def _train(session: Session, begin: Callable[[], TrainState]) -> Outcome:
    """Trains a claimed run."""
    experiment, run_dir = session.experiment, session.run_dir
    xz = session.prepared.heldout.xz_nats_per_byte
    newest = verified.resumable(run_dir.checkpoints_dir, session.check)
    if newest is None:
        run_dir.require_nothing_saved()
    data = session.prepared.description
    bound = {"tokenizer": data["tokenizer"], "data": data["content"]}
    with contextlib.closing(
        run_dir.checkpoints(keep=experiment.keep, read_only=False, bound=bound)
    ) as checkpoints:
        if newest is None:
            return _fit(session, checkpoints, begin(), None)
        tokenizer_of(run_dir, newest, checkpoints.bound(newest))
        memory = checkpoints.memory(newest)
        if why := why_finished(experiment, newest, memory):
            why = f"nothing left to do: {why}"
            heldout = last_evaluation(run_dir.metrics_path, up_to=newest)
            return Outcome(newest, why, heldout, _best(memory), False, xz)
        cluster.print_once(f"Resuming {run_dir.path} at step {newest}.")
        target = experiment.recipe().target(session.placed)
        state, memory = checkpoints.restore(newest, target)
        return _fit(session, checkpoints, state, memory)


def _fit(
    session: Session,
    checkpoints: Checkpoints,
    state: TrainState,
    memory: dict[str, Any] | None,
) -> Outcome:
    experiment, placed = session.experiment, session.placed
    recipe, start = experiment.recipe(), int(state.step)
    schedule = experiment.optim.schedule
    train_step = make_train_step(
        recipe, placed, microbatches=experiment.microbatches, seed=experiment.seed
    )
    feed, heldout = _batches(session, start)
    eval_step = make_eval_step(recipe, placed)
    forward = model_flops(eval_step, state.params, heldout[0])
    with contextlib.ExitStack() as stack:
        stack.callback(feed.close)
        write = _writers(stack, session, start)
        evaluate = Evaluate(
            eval_step,
            heldout,
            write,
            every=experiment.eval_every,
            schedule=schedule,
            n_bytes=session.prepared.heldout.n_bytes,
        )
        decide = Decide(experiment.stop, evaluate, schedule, memory)
        save = Save(checkpoints, decide, every=experiment.save_every)
        log = Log(
            write,
            every=experiment.log_every,
            with_rates=meter_on(placed.mesh.devices.flat, forward_flops=forward),
            flush_before=(evaluate, save),
            judge=nonfinite_steps(
                experiment, checkpoints, n_windows=len(session.prepared.train)
            ).judge,
        )
        state, history = fit(
            state,
            feed,
            train_step,
            num_steps=experiment.num_steps,
            events=(log, evaluate, decide, save),
        )
        _finish(state, history, log, save)
        checkpoints.wait()
    return _outcome(session, int(state.step), history, decide)


def _batches(session: Session, start: int):
    """The batches to train on, from a step on, and those that are held out."""
    experiment, prepared = session.experiment, session.prepared
    row = experiment.objective.row
    sizes = {
        "batch_size": experiment.data.batch_size,
        "placed": session.placed,
        "vocab_size": experiment.model.vocab_size,
    }
    feed = batches(prepared.train, row, seed=experiment.seed, start=start, **sizes)
    return feed, eval_batches(prepared.heldout, row, **sizes)


def _finish(state: TrainState, history: History, log: Log, save: Save) -> None:
    """Writes what no event has yet: the last metrics, an interrupted state."""
    step = int(state.step)
    log.run(step, state, history)
    # What is on the disk does not tell: a save that has begun may not be there yet.
    if history.interrupted and step != save.saved:
        save.run(step, state, history)


def _outcome(session: Session, step: int, history: History, decide: Decide) -> Outcome:
    return Outcome(
        step,
        why_ended(session.experiment, step, history),
        last_evaluation(session.run_dir.metrics_path, up_to=step),
        _best(decide.memory),
        history.interrupted,
        session.prepared.heldout.xz_nats_per_byte,
    )


def _writers(
    stack: contextlib.ExitStack, session: Session, start: int
) -> Callable[[dict[str, Any]], None]:
    """One function that hands a row to every sink; the stack closes them.

    Only process 0 writes. Rows of steps after `start`, which a killed session did and
    did not save, are removed.
    """
    if not cluster.is_first():
        return lambda row: None
    experiment, run_dir = session.experiment, session.run_dir
    drop_rows_after(run_dir.metrics_path, start)
    to = (
        sinks.JsonlSink(run_dir.metrics_path),
        sinks.TensorBoardSink(run_dir.tensorboard_dir),
        sinks.Progress(experiment.num_steps, start=start, every=experiment.log_every),
    )
    for each in to:
        stack.callback(each.close)

    def write(row: dict[str, Any]) -> None:
        for each in to:
            each.write(row)

    return write


def _best(memory: dict[str, Any]) -> dict[str, Any] | None:
    return memory["rule"].get("best")
