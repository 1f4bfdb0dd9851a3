"""The schedule of a pipeline: which stage computes what at which tick."""

from typing import Any, NamedTuple

from jaxpar.errors import UserError
from jaxpar.partition.layout import Layout


class Schedule(NamedTuple):
    """Which microbatch a stage computes at which tick, and which of its layers.

    Device s of the stages holds the rows of microbatch (g, s) of each group g. In a
    circular pipeline (Narayanan et al., 2021, interleaved) it holds several chunks of
    layers, and each microbatch goes round all stages once for each of them: a group
    makes all its rounds, then the next one follows without a gap.
    """

    n_stages: int
    n_groups: int
    """Microbatches of each device's own rows; n_stages times as many in all."""
    n_rounds: int = 1
    """How often a microbatch goes round; chunks of layers of each stage."""

    @property
    def n_microbatches(self) -> int:
        """Of the rows of all stages."""
        return self.n_stages * self.n_groups

    @property
    def period(self) -> int:
        """Ticks in which a stage computes one group."""
        return self.n_stages * self.n_rounds

    @property
    def n_turns(self) -> int:
        """Ticks in which one stage computes what counts."""
        return self.n_rounds * self.n_microbatches

    @property
    def n_ticks(self) -> int:
        """Ticks in which some stage computes."""
        return self.n_turns + self.n_stages - 1

    @property
    def bubble(self) -> float:
        """The part of its ticks in which a stage computes nothing that counts."""
        return (self.n_stages - 1) / self.n_ticks

    def round_of(self, turn: Any) -> Any:
        """In which round a stage's turn is; it takes turn u at tick u + stage."""
        return turn // self.n_stages % self.n_rounds

    def microbatch_of(self, turn: Any) -> Any:
        """The number of the microbatch that a stage computes in its turn."""
        S = self.n_stages
        return turn // self.period * S + turn % S


def microbatches(layout: Layout, asked: int, rows: int) -> int:
    """How many microbatches a step of so many rows has.

    Of a pipeline of S stages for which one is asked: 2 S, or S if its rows are too few.

    Raises:
      UserError: the stages do not divide them.
    """
    S = layout.n_stages
    if S == 1 or asked % S == 0:
        return asked
    if asked == 1:
        return S if rows % (2 * layout.batch_divisor) else 2 * S
    near = max(S, asked - asked % S)
    raise UserError(
        f"microbatches={asked} is not divisible by the {S} stages of layout "
        f"{layout.spelling}; the nearest legal numbers are {near} and {near + S}."
    )
