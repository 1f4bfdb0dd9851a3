"""A run trained inside its directory: state, events, and what is left there."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxpar.checkpoint.lock import RunLock
from jaxpar.checkpoint.manager import Checkpoints
from jaxpar.checkpoint.run import RunDir, read_metrics
from jaxpar.config import UserError, to_json
from jaxpar.data.pipeline import batches, eval_batches
from jaxpar.data.prepare import Prepared
from jaxpar.metrics import sink
from jaxpar.metrics.flops import model_flops
from jaxpar.metrics.meter import meter_on
from jaxpar.partition import cluster
from jaxpar.partition.layout import Placed
from jaxpar.train.events import Decide, Evaluate, Log
from jaxpar.train.loop import History, Wish, fit
from jaxpar.train.state import TrainState
from jaxpar.train.step import make_eval_step, make_train_step


class Save:
    """Saves on schedule, after a granted Stop, at the best evaluation, and last."""

    def __init__(self, checkpoints: Checkpoints, decide: Decide, *, every: int):
        self._checkpoints, self._decide, self._every = checkpoints, decide, every
        self.saved = cluster.agreed(checkpoints.newest())

    def due(self, step: int, history: History) -> bool:
        if step == self.saved:
            return False
        on_schedule = step > 0 and step % self._every == 0
        asked = history.stop is not None or history.best_at == step
        return on_schedule or asked or step == history.num_steps

    def run(self, step: int, state: TrainState, history: History) -> Wish:
        self.saved = step
        self._checkpoints.save(
            step, state, memory=self._decide.memory, best=history.best_at == step
        )


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a session ended: at which step, why, and the newest held-out score.

    interrupted: a signal ended it; the state was saved.
    """

    step: int
    reason: str
    heldout: dict[str, float] | None
    best: dict[str, float] | None
    interrupted: bool


def refuse_misfits(run: Any, prepared: Prepared | None = None) -> None:
    """Refuses, before anything is compiled, a model that its data does not fit."""
    longest, seq_len = run.model.max_positions, run.data.seq_len
    if seq_len > longest:
        raise UserError(
            f"data.seq_len={seq_len} is longer than the model's "
            f"max_positions={longest}; shorten the one or raise the other."
        )
    if prepared is None:
        return
    ids, vocabulary = prepared.tokenizer.vocab_size, run.model.vocab_size
    if ids > vocabulary:
        raise UserError(
            f"The tokenizer has {ids} ids, the model's vocab_size is {vocabulary}; "
            f"raise model.vocab_size to {ids} or more, or take a smaller tokenizer."
        )


def same_content(home: RunDir, prepared: Prepared, facts: dict[str, Any]) -> None:
    """Refuses to resume on data, or from a run, other than the last receipt's."""
    try:
        sessions = json.loads((home.path / "receipt.json").read_text())["sessions"]
        last, before = sessions[-1], sessions[-1]["data"]
    except (OSError, ValueError, KeyError, IndexError):
        return
    was, now = last.get("start_from"), facts.get("start_from")
    if was != now:
        raise UserError(
            f"{home.path} started from the run and step {was}, --start-from is now "
            f"{now}; restore it, or start a new run with another --run-dir."
        )
    for name in ("content", "tokenizer"):
        was, now = before.get(name), prepared.description.get(name)
        if was != now:
            raise UserError(
                f"{home.path}: the {name} of the data has changed since the last "
                f"session (fingerprint {was}, now {now}); restore it, or start a new "
                "run with another --run-dir."
            )


def agree(run: Any, home: RunDir) -> None:
    """Refuses processes that were given different experiments or directories."""
    told = json.dumps(to_json(run), sort_keys=True).encode()
    cluster.same(
        experiment=hashlib.sha256(told).hexdigest()[:16], directory=str(home.path)
    )


@contextlib.contextmanager
def held(
    run: Any, home: RunDir, prepared: Prepared, *, source: Path | None, **facts: Any
) -> Iterator[None]:
    """The run's directory, locked for one writer: claimed, with its receipt written.

    Process 0 does it for all, and the others look whether they see it.
    """
    described = prepared.description
    cluster.same(data=described["content"], tokenizer=described["tokenizer"])
    with contextlib.ExitStack() as stack:
        with cluster.together():
            if cluster.is_first():
                stack.enter_context(RunLock(home.path))
                if home.claim(run, source=source):
                    same_content(home, prepared, facts)
                prepared.tokenizer.save(home.tokenizer_dir)
                home.write_receipt(layout=run.layout.spelling, data=described, **facts)
        with cluster.together():
            if not home.exists():
                raise UserError(
                    f"{home.path}, which process 0 has made, is not to be seen here; "
                    "--run-dir must be on a file system that all processes share."
                )
        yield


def train(
    run: Any,
    home: RunDir,
    prepared: Prepared,
    placed: Placed,
    begin: Callable[[], TrainState],
) -> Ended:
    """Trains a claimed run on from its newest checkpoint, else from `begin()`."""
    with contextlib.closing(
        home.checkpoints(keep=run.keep, read_only=False)
    ) as checkpoints:
        newest, memory = cluster.agreed(checkpoints.newest()), None
        if newest is not None:
            memory = checkpoints.memory(newest)
            if why := nothing_left(run, newest, memory):
                why = f"nothing left to do: {why}"
                return Ended(newest, why, last_score(home), _best(memory), False)
            cluster.tell(f"Resuming {home.path} at step {newest}.")
            state, memory = checkpoints.restore(newest, run.recipe().target(placed))
        else:
            state = begin()
        return _fit(run, home, prepared, placed, checkpoints, state, memory)


def _fit(run, home, prepared, placed, checkpoints, state, memory) -> Ended:
    recipe, start = run.recipe(), int(state.step)
    schedule = run.optim.schedule
    train_step = make_train_step(
        recipe, placed, microbatches=run.microbatches, seed=run.seed
    )
    rows = {"batch_size": run.data.batch_size, "placed": placed}
    feed = batches(
        prepared.train, run.objective.row, seed=run.seed, start=start, **rows
    )
    heldout = eval_batches(prepared.heldout, run.objective.row, **rows)
    eval_step = make_eval_step(recipe, placed)
    forward = model_flops(eval_step, state.params, heldout[0])
    with contextlib.ExitStack() as stack:
        stack.callback(feed.close)
        write = _writers(stack, run, home, start)
        evaluation = Evaluate(
            eval_step,
            heldout,
            write,
            every=run.eval_every,
            schedule=schedule,
            n_bytes=prepared.heldout.n_bytes,
        )
        decide = Decide(run.stop, evaluation, schedule, memory)
        save = Save(checkpoints, decide, every=run.save_every)
        log = Log(
            write,
            every=run.log_every,
            complete=meter_on(placed.mesh.devices.flat, forward_flops=forward),
            before=(evaluation, save),
        )
        state, history = fit(
            state,
            feed,
            train_step,
            num_steps=run.num_steps,
            events=(log, evaluation, decide, save),
        )
        step = int(state.step)
        log.run(step, state, history)
        # Not what is on the disk: a save that has begun may not be there yet.
        if history.interrupted and step != save.saved:
            save.run(step, state, history)
        checkpoints.wait()
    best = _best(decide.memory)
    return Ended(
        step, _reason(run, step, history), last_score(home), best, history.interrupted
    )


def _writers(stack: contextlib.ExitStack, run: Any, home: RunDir, start: int):
    """One function that hands a line to every sink; the stack closes them.

    Process 0 alone writes.
    """
    if not cluster.is_first():
        return lambda row: None
    sinks = (
        sink.JsonlSink(home.metrics_path),
        sink.TensorBoardSink(home.tensorboard_dir),
        sink.Progress(run.num_steps, start=start, every=run.log_every),
    )
    for each in sinks:
        stack.callback(each.close)

    def write(row: dict) -> None:
        for each in sinks:
            each.write(row)

    return write


def _reason(run: Any, step: int, history: History) -> str:
    if history.interrupted:
        return f"stopped on request ({history.signal}) and saved"
    if history.stop:
        return history.stop.reason
    early = unfinished(run.optim.schedule, step, history.decay_from)
    return f"num_steps={run.num_steps} reached{early}"


def nothing_left(run: Any, step: int, memory: dict) -> str:
    """Why a run at this step is finished, or nothing."""
    if memory.get("stopped"):
        return memory["stopped"]
    if step >= run.num_steps:
        return f"step {step} is the last of num_steps={run.num_steps}"
    return ""


def unfinished(schedule: Any, step: int, decay_from: int) -> str:
    """What to say where the steps ended before the learning rate's decay did."""
    ends = schedule.ends(decay_from)
    if ends is None:
        return (
            "; the learning rate has not begun to decay, which it does once the "
            "stopping rule finds convergence: raise num_steps to go on"
        )
    if step < ends:
        return (
            f"; the learning rate's decay would end at step {ends}: raise num_steps "
            "to go on"
        )
    return ""


def last_score(home: RunDir) -> dict[str, float] | None:
    """The newest evaluation that metrics.jsonl holds."""
    if not home.metrics_path.is_file():
        return None
    scores = [row for row in read_metrics(home.metrics_path) if "split" in row]
    return scores[-1] if scores else None


def report(ended: Ended, home: RunDir, xz: float | None) -> None:
    """Prints where a run is, why it ended, and how good it is."""
    if not cluster.is_first():
        return
    print(f"{home.path} is at step {ended.step}: {ended.reason}.")
    if ended.heldout:
        score = ended.heldout
        beside = "" if xz is None else f"; xz -9 reaches {xz:.4f} on the same bytes"
        print(
            f"Held out at step {score['step']}: {score['nats_per_byte']:.4f} nats/byte"
            f"{beside}; {score['nats_per_token']:.4f} nats/token."
        )
    if ended.best:
        print(
            f"Best at step {ended.best['step']}: {ended.best['loss']:.4f} nats/token; "
            "its checkpoint is kept, and is the one that evaluate and generate take."
        )


def _best(memory: dict) -> dict | None:
    return memory["rule"].get("best")
