"""Entry point: fine-tunes from another run's checkpoint, or resumes a fine-tune."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from jaxpar import cache
from jaxpar.checkpoint.transfer import adopt
from jaxpar.checkpoint.verified import Check
from jaxpar.data import tokenizer
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.errors import UserError
from jaxpar.experiment import Experiment, Finetune
from jaxpar.partition import cluster
from jaxpar.partition.layout import Placed
from jaxpar.partition.precision import in_its_types, types_of
from jaxpar.run.adoption import (
    record,
    source_params,
    transfer_of,
    vocabulary_of,
    with_added_tokens,
)
from jaxpar.run.directory import RunDir, Step, classes_of, default_dir
from jaxpar.run.opening import tokenizer_of
from jaxpar.run.origin import (
    Origin,
    Source,
    begun_from,
    find_begun,
    has_saved,
    require_same,
)
from jaxpar.run.own_events import OwnEvents
from jaxpar.run.placing import place, simulate_for
from jaxpar.run.session import require_agreement
from jaxpar.run.training import train_run
from jaxpar.train.source_shapes import stored_params
from jaxpar.train.state import TrainState, create, with_params


@in_its_types
def main(
    experiment: Finetune,
    *,
    run_dir: str | Path | None = None,
    devices: int | None = None,
    stem: str = "experiment",
    source_file: Path | None = None,
    step: Step = None,
    classes: tuple[type, ...] = (),
    imports: Sequence[Path] = (),
    check: Check | None = None,
    events: OwnEvents = (),
) -> int:
    """Fine-tunes to the end, or on from where the run was left; the exit status.

    step: the source's checkpoint; best where that run has a stopping rule, else newest.
    classes: those that the source's config.json names and jaxpar does not ship;
    imports: the files that define them, for the receipt and the printed commands.
    devices, source_file, check, events: as in jaxpar.pretrain.
    """
    cache.keep_programs()
    stem = source_file.stem if source_file else stem
    # Orbax, which looks for steps, starts the backend: no devices can be added then.
    simulate_for(experiment, devices)
    source = Source(experiment.start_from, *classes)
    given = RunDir(run_dir) if run_dir else None
    own = given or find_begun(stem, experiment, source, step, check)
    begun = begun_from(own) if own else None
    if own and begun and has_saved(own):
        require_same(own, begun, source, step)
        run, origin, tokens = own, begun, tokenizer.load(own.tokenizer_dir)
        stored = own.open(*classes_of(experiment), *classes)
        experiment = experiment.with_model_of(lambda: stored)
    else:
        experiment = experiment.with_model_of(lambda: source.experiment)
        origin = _first_origin(own, begun, source, step, check)
        name = default_dir(stem, experiment, start_from=origin.spelling)
        run, tokens = own or RunDir(name), _first_tokenizer(experiment, source)
    require_agreement(experiment, run)
    placed = place(experiment, devices)

    def begin(experiment: Finetune) -> TrainState:
        base = source.experiment
        with types_of(base.precision):
            record(run, transfer_of(experiment, base))
            return start_from(experiment, source.run_dir, base, placed, origin.step)

    outcome = train_run(
        experiment,
        begin,
        run_dir=run,
        placed=placed,
        source_file=source_file,
        tokenizer=tokens,
        start_from=origin,
        imports=imports,
        check=check,
        events=events,
    )
    return outcome.report(run)


def _first_origin(
    own: RunDir | None,
    begun: Origin | None,
    source: Source,
    asked: Step,
    check: Check | None,
) -> Origin:
    """Where a fine-tune that has saved nothing yet starts: where it once began, if so.

    Raises:
      UserError: the source, or the step of it where this one began, is not there.
    """
    if own is None or begun is None or source.why_unreadable:
        return source.choose(asked, check)
    require_same(own, begun, source, asked)
    try:
        source.choose(begun.step, check)
    except UserError as error:
        raise UserError(
            f"{own.path} started from step {begun.step} of {source.path} and has saved "
            f"nothing yet: {error} Choose another --run-dir, or remove {own.path}, to "
            "start from another step."
        ) from error
    return begun


def _first_tokenizer(experiment: Finetune, source: Source) -> Tokenizer:
    """The tokenizer that a fine-tune starts with, once its model is seen to fit.

    Says which parameters are not simply taken from the source.

    Raises:
      UserError: the source's parameters do not account for this model's.
    """
    with types_of(source.experiment.precision):
        found = str(transfer_of(experiment, source.experiment))
    if found:
        cluster.print_once(found)
    tokens = tokenizer.load(source.run_dir.tokenizer_dir)
    return with_added_tokens(experiment, tokens)


def start_from(
    experiment: Finetune, source: RunDir, base: Experiment, placed: Placed, step: int
) -> TrainState:
    """Step 0, a fresh optimizer, and the parameters that another run learned."""
    recipe, target = experiment.recipe(), stored_params(base.recipe(), placed)
    with contextlib.closing(source.checkpoints(read_only=True)) as checkpoints:
        learned = checkpoints.restore_params(step, target)
        tokenizer_of(source, step, checkpoints.bound(step))
    fresh = create(recipe, placed, seed=experiment.seed).params
    fresh = recipe.to_natural(placed, fresh)
    learned, keep_fresh = source_params(experiment, base, learned, fresh)
    params = adopt(
        fresh,
        learned,
        keep_fresh=keep_fresh,
        vocabulary=vocabulary_of(experiment, base),
    )
    return with_params(recipe, placed, recipe.to_stored(placed, params))
