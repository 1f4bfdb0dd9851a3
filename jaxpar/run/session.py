"""A session of a run: its directory, claimed, for an experiment and its data."""

import contextlib
import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxpar.checkpoint.verified import Check
from jaxpar.config import to_json
from jaxpar.data.prepare import Prepared
from jaxpar.errors import UserError
from jaxpar.experiment import Experiment
from jaxpar.guard.lock import RunLock
from jaxpar.guard.time_recorder import TimeRecorder
from jaxpar.partition import cluster
from jaxpar.partition.layout import Placed
from jaxpar.run.directory import RunDir
from jaxpar.run.origin import Origin
from jaxpar.run.own_events import OwnEvents
from jaxpar.tree import flatten


@dataclasses.dataclass(frozen=True)
class Session:
    """An experiment with all that training it takes: where, on what, on which data."""

    experiment: Experiment
    run_dir: RunDir
    placed: Placed
    prepared: Prepared
    check: Check = Check()
    time: TimeRecorder = dataclasses.field(default_factory=TimeRecorder)
    """Records where its time goes."""
    events: OwnEvents = ()
    """Events of the user's own."""

    def __str__(self) -> str:
        """What the session will do, for whoever started it."""
        experiment, devices = self.experiment, self.placed.mesh.devices
        shapes = flatten(experiment.recipe().anatomy.shapes).values()
        rows, seq_len = experiment.data.batch_size, experiment.data.seq_len
        return (
            f"{self.run_dir.path}: {sum(leaf.size for leaf in shapes):,} parameters, "
            f"{experiment.num_steps:,} steps of {rows * seq_len:,} tokens ({rows} rows "
            f"of {seq_len:,}), on {devices.size} x {devices.flat[0].device_kind} as "
            f"{self.placed.layout.spelling}."
        )


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


def _say_changed_code(run_dir: RunDir, source_file: Path | None) -> None:
    """Says where the experiment's file is another than when the run began.

    The fingerprint knows fields, not code: a model that was edited is the same run.
    """
    kept = run_dir.path / "experiment.py"
    if source_file is None or not kept.is_file():
        return
    before, now = (
        file.read_text(errors="replace").splitlines() for file in (kept, source_file)
    )
    changed = sum(line[:2] in ("+ ", "- ") for line in difflib.ndiff(before, now))
    if changed:
        cluster.print_once(
            f"{source_file} has changed since {run_dir.path} began with it ({changed} "
            f"lines; {kept} is the copy). The run goes on from its own weights: code "
            "that was edited is trained afresh with another --run-dir."
        )


def _say_changed_layout(run_dir: RunDir, layout: str, exact: int) -> None:
    """Says where a session goes on with another layout than the one before it."""
    before = (run_dir.receipt.sessions() or [{}])[-1].get("layout", layout)
    then = "and all bits" if exact else "sums of float32 may round otherwise"
    if before != layout:
        cluster.print_once(
            f"Layout {layout} from here on; {run_dir.path} was on {before} so far. The "
            f"rows stay the same, {then}."
        )


@contextlib.contextmanager
def claimed(
    session: Session,
    files: Sequence[Path] = (),
    *,
    source_file: Path | None,
    start_from: Origin | None,
) -> Iterator[None]:
    """The run's directory, locked for one writer, with its receipt written.

    files: those that define the experiment and its classes. Process 0 does it for all,
    and the others check that they see it.
    """
    run_dir, data = session.run_dir, session.prepared.description
    facts = {} if start_from is None else start_from.facts
    cluster.require_same(data=data["content"], tokenizer=data["tokenizer"])
    with contextlib.ExitStack() as stack:
        with cluster.synchronized():
            if cluster.is_first():
                stack.enter_context(RunLock(run_dir.path))
                if run_dir.claim(session.experiment, source_file=source_file):
                    _say_changed_code(run_dir, source_file)
                    run_dir.receipt.require_same(
                        session.prepared, facts.get("start_from")
                    )
                session.prepared.tokenizer.save(run_dir.tokenizer_dir)
                layout = session.placed.layout.spelling
                _say_changed_layout(run_dir, layout, session.experiment.exact)
                paths = [str(file.absolute()) for file in files]
                run_dir.receipt.add(layout=layout, data=data, files=paths, **facts)
        with cluster.synchronized():
            if not run_dir.exists():
                raise UserError(
                    f"{run_dir.path}, which process 0 has made, cannot be seen here; "
                    "--run-dir must be on a file system that all processes share."
                )
        yield
