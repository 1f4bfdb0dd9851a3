"""Loads a run for reading: its experiment, parameters and tokenizer on devices."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxpar.checkpoint.verified import Check
from jaxpar.data import tokenizer
from jaxpar.data.tokenizer import Tokenizer
from jaxpar.errors import UserError
from jaxpar.experiment import Experiment
from jaxpar.partition import cluster
from jaxpar.partition.devices import choose_devices, visible_devices
from jaxpar.partition.layout import Layout, Placed, as_layout
from jaxpar.partition.precision import P, T, types_of
from jaxpar.run.directory import RunDir, Step
from jaxpar.tables import for_messages
from jaxpar.train.state import Recipe


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """What evaluation, generation and notebooks need of a run."""

    run_dir: RunDir
    experiment: Experiment
    recipe: Recipe
    placed: Placed
    params: Any
    """Their layers in the order of the devices of `placed`."""
    step: int
    bound: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The hashes that the step was saved with."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer; UserError where the step was trained with another."""
        if not self.run_dir.tokenizer_dir.is_dir():
            raise UserError(f"{self.run_dir.path} has no tokenizer; give token ids.")
        return tokenizer_of(self.run_dir, self.step, self.bound)


def tokenizer_of(run_dir: RunDir, step: int, bound: Mapping[str, str]) -> Tokenizer:
    """A run's tokenizer, if it is the one that a step was trained with.

    bound: the hashes that the step was saved with.

    Raises:
      UserError: it is another, or cannot be loaded.
    """
    found = tokenizer.load(run_dir.tokenizer_dir)
    expected = bound.get("tokenizer", found.fingerprint)
    if found.fingerprint != expected:
        raise UserError(
            f"{run_dir.tokenizer_dir} is not the tokenizer that step {step} was "
            f"trained with (hash {found.fingerprint[:16]}, not {expected[:16]}); copy "
            "it again from its source."
        )
    return found


def open_run(
    path: str | Path,
    *,
    step: Step = None,
    layout: Layout | str | None = None,
    devices: int | None = None,
    classes: tuple[type, ...] = (),
    check: Check | None = None,
) -> OpenRun:
    """Opens a run, read-only, at a step: by number, "best" or "newest".

    None means best where the run has a stopping rule, else newest. layout: the run's
    own where exactly so many devices are visible, else one device. devices: how many
    to simulate on a CPU. classes: those that config.json names and jaxpar does not
    ship. check: how the step is verified; fully where nothing is said.

    Raises:
      UserError: there is no such run, step or layout.
      NoUsableCheckpoint: the step is damaged.
    """
    run_dir = RunDir(path)
    experiment = run_dir.open(*classes)
    # Orbax starts the backend, after which no devices can be simulated.
    placed = place_for_reading(layout_of(run_dir, experiment), layout, devices)
    step = cluster.broadcast(
        run_dir.choose_step(step, rule=experiment.stop, check=check)
    )
    recipe = experiment.recipe()
    recipe.abstract(placed.layout)
    with contextlib.closing(run_dir.checkpoints()) as checkpoints:
        params = checkpoints.restore_params(step, recipe.target(placed).params)
        params = recipe.to_stored(placed, params)
        bound = checkpoints.bound(step)
    return OpenRun(run_dir, experiment, recipe, placed, params, step, bound)


def in_types_of_run(function: Callable[P, T]) -> Callable[P, T]:
    """The function, in the types of the run that it takes first, as open_run does."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        path: Any = args[0] if args else kwargs["run"]
        classes: Any = kwargs.get("classes", ())
        with types_of(RunDir(path).open(*classes).precision):
            return function(*args, **kwargs)

    return run


def layout_of(run_dir: RunDir, experiment: Experiment) -> Layout:
    """The layout of a run's newest session: as its experiment names it, or chosen."""
    if isinstance(experiment.layout, Layout):
        return experiment.layout
    sessions = run_dir.receipt.sessions()
    return Layout.parse(sessions[-1].get("layout", "data=1") if sessions else "data=1")


def place_for_reading(
    own: Layout, asked: Layout | str | None, devices: int | None
) -> Placed:
    """Where to compute: as asked, else as the run did where that fits, else on one.

    Several processes compute on all their devices or not at all.
    """
    if asked is None and cluster.count() > 1:
        asked = own
    if asked is not None:
        layout = as_layout(asked)
        return layout.on(choose_devices(layout, devices, may_idle=True))
    visible = visible_devices(devices)
    if len(visible) == own.n_devices:
        return own.on(visible)
    if len(visible) > 1:
        print(
            f"On one of {len(visible)} devices; --layout data={len(visible)} uses all.",
            file=for_messages(),
        )
    return Layout.parse("data=1").on(visible[:1])
