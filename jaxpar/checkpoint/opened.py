"""A run opened for reading: its experiment, parameters and tokenizer on devices."""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax

from jaxpar.checkpoint.run import RunDir
from jaxpar.config import UserError
from jaxpar.data import tokenizer
from jaxpar.partition import cluster
from jaxpar.partition import devices as machine
from jaxpar.partition.layout import Layout, Placed
from jaxpar.train.state import Recipe


@dataclasses.dataclass(frozen=True)
class Opened:
    """What evaluation, generation and notebooks need of a run."""

    home: RunDir
    experiment: Any
    recipe: Recipe
    placed: Placed
    params: Any
    step: int

    @property
    def tokenizer(self) -> Any:
        """The run's tokenizer."""
        if not self.home.tokenizer_dir.is_dir():
            raise UserError(f"{self.home.path} has no tokenizer; give token ids.")
        return tokenizer.load(self.home.tokenizer_dir)


def open_run(
    path: str | Path,
    *,
    step: int | str | None = None,
    layout: Layout | str | None = None,
    devices: int | None = None,
    classes: tuple[type, ...] = (),
) -> Opened:
    """Opens a run, read-only, at a step: by number, "best" or "newest".

    None means best where the run has a stopping rule, else newest. layout: the run's
    own where exactly so many devices are visible, else one device. classes: those that
    config.json names and jaxpar does not ship.
    """
    home = RunDir(path)
    experiment = home.open(*classes)
    # Orbax starts the backend, after which no devices can be simulated.
    placed = place(experiment.layout, layout, devices)
    step = cluster.agreed(home.pick(step, rule=experiment.stop))
    recipe = experiment.recipe()
    recipe.abstract(placed.layout)
    checkpoints = home.checkpoints()
    params = checkpoints.restore_params(step, recipe.target(placed).params)
    checkpoints.close()
    return Opened(home, experiment, recipe, placed, params, step)


def place(own: Layout, asked: Layout | str | None, devices: int | None) -> Placed:
    """Where to compute: as asked, else as the run did where that fits, else on one.

    Several processes compute on all their devices or not at all.
    """
    if asked is None and cluster.count() > 1:
        asked = own
    if asked is not None:
        layout = Layout.parse(asked) if isinstance(asked, str) else asked
        return layout.on(machine.choose(layout, devices, may_idle=True))
    if devices is not None:
        # Fails once a backend runs; then what is visible is what there is.
        with contextlib.suppress(RuntimeError):
            machine.simulate(devices)
    seen = jax.devices()
    if len(seen) == own.n_devices:
        return own.on(seen)
    if len(seen) > 1:
        print(
            f"On one of {len(seen)} devices; --layout data={len(seen)} uses all.",
            file=sys.stderr,
        )
    return Layout.parse("data=1").on(seen[:1])
