"""Loss spikes: which steps are one, and what follows from it."""

import abc
import dataclasses
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jaxpar.config import free, require_positive
from jaxpar.errors import Diverged, UserError
from jaxpar.metrics.sinks import Row
from jaxpar.partition import cluster
from jaxpar.train.nonfinite import listed

Memory = dict[str, Any]
"""What is known of earlier steps: JSON, saved in the checkpoint."""
Skipping = dict[str, Any]
"""What one rewind skips, as JSON: from_step, spike (its step), windows (sorted)."""
Judge = Callable[[Row], tuple[Row, Exception | None]]
"""From a step's row to the row to write, and an error to raise then, or None."""
MAD_TO_DEVIATION = 1.4826
"""Standard deviation of normal noise by its median absolute deviation."""


class Spike(NamedTuple):
    """A step whose loss is a spike."""

    step: int
    loss: float
    """Of its batch, in nats per token."""
    median: float
    """Of the losses before it."""
    limit: float
    """What the loss should not have exceeded."""


class GoBack(Exception):
    """Training has to go back to an earlier step, and to skip windows from there on.

    It ends the loop before any other event sees the state of that step.
    """

    def __init__(self, spike: Spike, skipping: Skipping):
        super().__init__(f"Step {spike.step} is a loss spike.")
        self.spike, self.skipping = spike, skipping


@dataclasses.dataclass(frozen=True)
class OnSpike(abc.ABC):
    """What follows from a loss spike.

    A step's loss is a spike if it lies above the median of the `window` losses before
    it by more than `factor` robust standard deviations (1.4826 times their median
    absolute deviation, as of normal noise), and by more than `min_rise`. Before so many
    losses are known there is no spike. A step that was not applied, or that scored no
    token, is left out. A spike's own loss counts among those before the next step, so
    that a loss that stays high is one no longer once half of the window is so high.

    So it depends on the losses of the run alone, and not on when they were fetched or
    where the run was stopped.
    """

    factor: float = 6.0
    """Robust standard deviations above the median that a spike exceeds; above 0."""
    window: int = 64
    """Losses before a step that it is compared with; 4 or more."""
    min_rise: float = 0.25
    """Nats per token above the median that a spike exceeds, too; 0 or more."""

    def __post_init__(self):
        if not self.factor > 0 or not self.min_rise >= 0 or self.window < 4:
            raise UserError(
                f"factor={self.factor} must be above 0, min_rise={self.min_rise} at "
                f"least 0, window={self.window} at least 4."
            )

    def find(self, step: int, loss: float, before: Sequence[float]) -> Spike | None:
        """The spike that this loss is after the newest losses before it, if it is."""
        if len(before) < self.window:
            return None
        median = statistics.median(before)
        deviation = MAD_TO_DEVIATION * statistics.median(
            abs(loss - median) for loss in before
        )
        limit = median + max(self.factor * deviation, self.min_rise)
        return Spike(step, loss, median, limit) if loss > limit else None

    @abc.abstractmethod
    def follow(
        self, spike: Spike, *, windows_of: Callable[[int], Sequence[int]], rewinds: int
    ) -> Exception | None:
        """What ends the loop after a spike; None lets it go on.

        windows_of: the windows of a step's batch. rewinds: how many there were.
        """


@dataclasses.dataclass(frozen=True)
class Warn(OnSpike):
    """A spike is reported, with the windows of its batch; training goes on."""

    factor: float = free(6.0)
    """Robust standard deviations above the median that a spike exceeds; above 0."""
    window: int = free(64)
    """Losses before a step that it is compared with; 4 or more."""
    min_rise: float = free(0.25)
    """Nats per token above the median that a spike exceeds, too; 0 or more."""

    def follow(
        self, spike: Spike, *, windows_of: Callable[[int], Sequence[int]], rewinds: int
    ) -> Exception | None:
        return None


@dataclasses.dataclass(frozen=True)
class Rewind(OnSpike):
    """Training goes back, and on from there without the windows of the spike's batch.

    It goes back to the newest good checkpoint that is at least `steps` steps older than
    the spike, and repeats the steps up to exactly `steps` before it as they were. From
    there on the windows are in no batch any more. So the result does not depend on
    which steps are saved. Where no checkpoint is so old, it goes back to the oldest one
    and skips the windows from there on; a run that has saved nothing begins again.
    """

    steps: int = 100
    """From so many steps before the spike on the windows are skipped; save_every times
    keep should be more."""
    batches: int = 1
    """Batches whose windows are skipped: that of the spike, and those before it."""
    max_rewinds: int = free(10)
    """Rewinds of the whole run; the spike after them ends it (status 43)."""

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "steps", "batches", "max_rewinds")
        if self.batches > self.steps:
            raise UserError(
                f"batches={self.batches} is more than steps={self.steps}: their "
                "windows can only be skipped from a step before them on."
            )

    def follow(
        self, spike: Spike, *, windows_of: Callable[[int], Sequence[int]], rewinds: int
    ) -> Exception | None:
        if rewinds >= self.max_rewinds:
            return Diverged(
                f"{described(spike)}; the run has gone back {rewinds} times. Lower "
                "optim.peak_lr or clip gradients more, in a new run, or raise "
                "on_spike.max_rewinds in this one."
            )
        steps = range(max(spike.step - self.batches, 0) + 1, spike.step + 1)
        windows = {int(window) for step in steps for window in windows_of(step)}
        from_step = max(spike.step - self.steps, 0)
        return GoBack(
            spike,
            {
                "from_step": from_step,
                "spike": spike.step,
                "windows": sorted(windows),
            },
        )


class Spikes:
    """A run's spikes: judges each step's row, and remembers the losses before it.

    windows_of: the windows of a step's batch. skipped: what the rewinds of the run
    skip, the oldest first. memory: of the checkpoint that the run goes on from.
    """

    def __init__(
        self,
        policy: OnSpike,
        *,
        windows_of: Callable[[int], Sequence[int]],
        skipped: Sequence[Skipping] = (),
        memory: Memory | None = None,
    ):
        self._policy, self._windows_of = policy, windows_of
        self._skipped = list(skipped)
        self._losses: list[float] = list((memory or {}).get("losses", ()))
        self._in_spike = False

    @property
    def memory(self) -> Memory:
        """What a checkpoint of the newest judged step has to hold."""
        return {"losses": list(self._losses), "skipped": list(self._skipped)}

    def judge(self, row: Row) -> tuple[Row, Exception | None]:
        """A step's row as it is to be written, and what ends the loop: see `follow`.

        The row of a spike says so, and names the windows of its batch; the first of
        successive spikes is reported on stderr.
        """
        if row.get("skipped") or not row.get("tokens", 1):
            return row, None
        step, loss = int(row["step"]), float(row["loss"])
        spike = self._policy.find(step, loss, self._losses)
        self._losses = [*self._losses, loss][-self._policy.window :]
        if spike is None:
            self._in_spike = False
            return row, None
        windows = [int(i) for i in self._windows_of(step)]
        if not self._in_spike:
            cluster.print_once(
                f"{described(spike)}; its batch has the windows {listed(windows)}.",
                file=sys.stderr,
            )
        self._in_spike = True
        ending = self._policy.follow(
            spike, windows_of=self._windows_of, rewinds=len(self._skipped)
        )
        return {**row, "spike": True, "windows": windows}, ending


def in_turn(*judges: Judge) -> Judge:
    """One judge, in which each gets the row of the one before it, up to an error."""

    def judge(row: Row) -> tuple[Row, Exception | None]:
        for each in judges:
            row, error = each(row)
            if error is not None:
                return row, error
        return row, None

    return judge


def pairs(skipped: Sequence[Skipping]) -> list[tuple[int, int]]:
    """What all rewinds skip as sorted pairs (from_step, window), as `order` takes them.

    A rewind to before an earlier one takes the earlier one's windows along, so that
    they do not come again in between.
    """
    found, from_step = set(), None
    for each in reversed(skipped):
        begins = each["from_step"]
        from_step = begins if from_step is None else min(from_step, begins)
        found |= {(from_step, window) for window in each["windows"]}
    return sorted(found)


def described(spike: Spike) -> str:
    """A spike as the beginning of a sentence."""
    return (
        f"The loss of step {spike.step}, {spike.loss:.4g} nats/token, is a spike: the "
        f"median before it is {spike.median:.4g}, the limit {spike.limit:.4g}"
    )
