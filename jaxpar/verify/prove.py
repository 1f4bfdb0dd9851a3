"""A proof in one call: for notebooks, tests and the command line."""

import dataclasses

from jaxpar.checkpoint.run import RunDir
from jaxpar.checkpoint.session import refuse_misfits
from jaxpar.data.source import Text
from jaxpar.experiment import Finetune, FromSource, Pretrain
from jaxpar.models.decoder import ModelConfig
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition import devices as machine
from jaxpar.partition.layout import Layout
from jaxpar.verify.compare import FACTOR, Reference
from jaxpar.verify.locate import locate
from jaxpar.verify.report import Proof
from jaxpar.verify.shrink import describe, shrunk


def verify(
    run: Pretrain | Finetune,
    layout: Layout | str | None = None,
    full: bool = False,
    precision: bool = False,
    *,
    devices: int | None = None,
    classes: tuple[type, ...] = (),
) -> Proof:
    """Compares a run on a layout (its own unless given) with the run on one device.

    full: at its own sizes, not at the least that the layout divides. precision: in the
    run's own precision, not in float64. devices: how many to simulate on a CPU.
    classes: those that config.json of a fine-tune's source names and jaxpar lacks.
    Raises ValueError where the layout cannot split the model or the batch.
    """
    wanted = _parsed(run.layout if layout is None else layout)
    if isinstance(run, Finetune) and isinstance(run.model, FromSource):
        source = RunDir(run.start_from).open(*classes)
        run = dataclasses.replace(run, model=source.model)
    run = dataclasses.replace(run, layout=wanted)
    refuse_misfits(run)
    run.recipe().abstract(wanted)
    machine.choose(wanted, devices, may_idle=True)
    run = run if full else shrunk(run, wanted)
    return prove(Reference(run, precision=precision), wanted)


def prove(reference: Reference, layout: Layout | str) -> Proof:
    """Compares one layout with a reference that may serve many."""
    layout = _parsed(layout)
    computed = reference.on(layout)
    for one in (reference.exact, reference.one, computed):
        one.prepare(reference.parts)
    leaves = [
        leaf for part in reference.parts for leaf in reference.leaves(part, computed)
    ]
    right = all(leaf.passed for leaf in leaves)
    return Proof(
        layout.spelling,
        _about(reference),
        tuple(leaves),
        tuple(reference.end_to_end(computed)),
        None if right else locate(reference, computed, leaves),
    )


def assert_same(
    model_or_run: ModelConfig | Pretrain | Finetune, layout: Layout | str
) -> None:
    """For a test: fails, with the table, where a layout changes a number.

    A model alone is trained on rows of its own, to predict each next token.
    """
    run = model_or_run
    if isinstance(run, ModelConfig):
        run = _around(run, _parsed(layout))
    proof = verify(run, layout)
    if not proof.passed:
        raise AssertionError(str(proof))


def _around(model: ModelConfig, layout: Layout) -> Pretrain:
    rows = 2 * layout.batch_divisor
    seq_len = min(model.max_positions, 64)
    return Pretrain(
        model=model,
        data=Text("synthetic", seq_len=seq_len, batch_size=rows),
        optim=AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=10),
        num_steps=1,
        layout=layout,
    )


def _about(reference: Reference) -> str:
    precision = reference.run.precision
    how = "float64, each leaf to 1e-12"
    if reference.exact is not reference.one:
        kinds = ", ".join(sorted(set(dataclasses.astuple(precision))))
        how = f"{kinds}; a leaf may be {FACTOR:g} x as far from float64 as one device"
    return f"{describe(reference.run)}; {how}"


def _parsed(layout: Layout | str) -> Layout:
    return Layout.parse(layout) if isinstance(layout, str) else layout
