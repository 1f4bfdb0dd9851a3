"""A proof in one call: for notebooks, tests and the command line."""

import dataclasses

from jaxpar.data.source import Text
from jaxpar.errors import UserError
from jaxpar.experiment import Experiment, Finetune, Pretrain
from jaxpar.models.base import ModelConfig
from jaxpar.models.describe import describe, fields_of
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.devices import choose_devices
from jaxpar.partition.layout import Layout, as_layout
from jaxpar.partition.precision import in_its_types
from jaxpar.run.directory import RunDir
from jaxpar.run.placing import layout_for
from jaxpar.verify.compare import FACTOR, Reference
from jaxpar.verify.locate import locate
from jaxpar.verify.proof import Proof
from jaxpar.verify.shrink import require_accepted, shrunk


@in_its_types
def verify(
    experiment: Experiment,
    layout: Layout | str | None = None,
    full: bool = False,
    precision: bool = False,
    *,
    devices: int | None = None,
    classes: tuple[type, ...] = (),
) -> Proof:
    """Compares an experiment on a layout, its own unless given, with one device.

    full: at its own sizes, not at the least that the layout divides. precision: in the
    experiment's own precision, not in float64. devices: how many to simulate on a CPU.
    classes: those that config.json of a fine-tune's source names and jaxpar lacks.

    Raises:
      UserError: the layout cannot split the model or the batch.
    """
    if isinstance(experiment, Finetune):
        source = RunDir(experiment.start_from)
        experiment = experiment.with_model_of(lambda: source.open(*classes))
    wanted = layout_for(experiment, devices) if layout is None else as_layout(layout)
    if wanted.n_devices == 1 and layout is None:
        raise UserError(
            f"Layout {experiment.layout.spelling} is one device here, so there is "
            "nothing to compare; name a --layout, or of auto the --devices."
        )
    experiment = dataclasses.replace(experiment, layout=wanted)
    if full:
        require_accepted(experiment, wanted)
    else:
        experiment = shrunk(experiment, wanted)
    _refuse_buffer_factor(experiment)
    choose_devices(wanted, devices, may_idle=True)
    return prove(Reference(experiment, precision=precision), wanted)


def _refuse_buffer_factor(experiment: Experiment) -> None:
    """Refuses a mixture whose devices drop what they have no room to send."""
    bound = fields_of(experiment.model).get("buffer_factor", 0)
    if bound:
        raise UserError(
            f"buffer_factor={bound} of the model's experts drops what exceeds it, on "
            "each layout something else, so there is nothing to prove; write "
            "--model.experts.buffer-factor 0."
        )


def prove(reference: Reference, layout: Layout | str) -> Proof:
    """Compares one layout with a reference, which can be used for several."""
    layout = as_layout(layout)
    computed = reference.on(layout)
    reference.compile(computed)
    leaves = [
        leaf for part in reference.parts for leaf in reference.leaves(part, computed)
    ]
    passed = all(leaf.passed for leaf in leaves)
    return Proof(
        layout.spelling,
        _about(reference),
        tuple(leaves),
        tuple(reference.end_to_end(computed)),
        None if passed else locate(reference, computed, leaves),
    )


def assert_same(
    model_or_experiment: ModelConfig | Experiment, layout: Layout | str
) -> None:
    """For a test: fails, with the table, where a layout changes a number.

    A model without an experiment is trained to predict each next token of random rows.

    Raises:
      AssertionError: a leaf differs.
    """
    experiment = model_or_experiment
    if not isinstance(experiment, Experiment):
        experiment = _experiment_with(experiment, as_layout(layout))
    proof = verify(experiment, layout)
    if not proof.passed:
        raise AssertionError(str(proof))


def _experiment_with(model: ModelConfig, layout: Layout) -> Pretrain:
    """A small experiment that trains a model on random rows."""
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
    """The sizes that are compared, and the limits, in one line."""
    experiment = reference.experiment
    rows = f"batch {experiment.data.batch_size} x {experiment.data.seq_len}"
    if (n := experiment.microbatches) > 1:
        rows += f" in {n} microbatches"
    limits = "float64, each leaf to 1e-12"
    if reference.exact is not reference.one:
        how = experiment.precision
        types = ", ".join(sorted({how.params, how.compute, how.reduce}))
        limits = f"{types}; each leaf to {FACTOR:g} x the rounding error of one device"
    return f"{describe(experiment.model)}, {rows}; {limits}"
