"""Judging what a layout computed by what one device did."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.errors import UserError
from jaxpar.experiment import Experiment
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision
from jaxpar.verify.computed import Computed
from jaxpar.verify.packed_rows import Packed
from jaxpar.verify.parts import END_TO_END, LOGITS, PARTS, TOKENS, Part
from jaxpar.verify.proof import Leaf

LIMIT = 1e-12
"""Float64 layouts differ by some 1e-15; a wrong one by far more than this."""
FLOOR = 1e-3
"""A leaf smaller than this share of the largest of its kind is measured by that."""
FACTOR = 4.0
"""How many times one device's own rounding error a layout may have: 1.9 is the most
that was seen, of bfloat16 and float32, on tensor=8 and fsdp=8."""
DOUBLE = Precision(params="float64", compute="float64", reduce="float64")


class Reference:
    """An experiment on one device, computed once and compared with many layouts.

    precision: compare in the experiment's own precision, and judge each leaf by the
    error that one device has in it, against float64. only: the one (row, target) that
    counts at all. parts: what is compared, everything unless given.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        precision: bool = False,
        only: tuple[int, int] | None = None,
        parts: Sequence[Part] | None = None,
    ):
        self.experiment = experiment if precision else doubled(experiment)
        self.windows = Packed(
            n_rows=experiment.data.batch_size,
            seq_len=experiment.data.seq_len,
            vocab_size=experiment.model.vocab_size,
            only=only,
        )
        self.parts = tuple(parts or (*PARTS, LOGITS if precision else TOKENS))
        one_device = Layout.parse("data=1")
        self.one = Computed(self.experiment, one_device, self.windows)
        self.exact = self.one
        if precision:
            wide = doubled(experiment)
            self.exact = Computed(wide, one_device, self.windows, given=self.one)
        self._wanted: dict[Part, dict[str, np.ndarray]] = {}
        self._limits: dict[Part, dict[str, float]] = {}

    def compile(self, *computed: Computed) -> None:
        """Begins to compile all parts: of one device, and of what is compared."""
        for part in self.parts:
            for each in dict.fromkeys((self.exact, self.one, *computed)):
                part.compile(each)

    def on(self, layout: Layout) -> Computed:
        """The same on a layout, given one device's parameters and gradients."""
        return Computed(self.experiment, layout, self.windows, given=self.one)

    def wanted(self, part: Part) -> dict[str, np.ndarray]:
        """What every layout should get."""
        if part not in self._wanted:
            source = self.one if part.exact else self.exact
            # Not as a tree, which would sort the names.
            found = part.read(source).items()
            self._wanted[part] = {path: np.asarray(x) for path, x in found}
        return self._wanted[part]

    def limits(self, part: Part) -> dict[str, float]:
        """Below which error each leaf passes."""
        if part not in self._limits:
            wanted = self.wanted(part)
            if self.exact is self.one or part.exact:
                self._limits[part] = dict.fromkeys(wanted, 0 if part.exact else LIMIT)
            else:
                least = float(jnp.finfo(self.experiment.precision.compute).eps)
                own = errors(part, part.read(self.one), wanted)
                self._limits[part] = {
                    path: FACTOR * max(error, least) for path, error in own.items()
                }
        return self._limits[part]

    def leaves(self, part: Part, computed: Computed) -> list[Leaf]:
        """The leaves of one part, judged."""
        wanted, limits = self.wanted(part), self.limits(part)
        zero = _zeros(part, wanted)
        found = errors(part, part.read(computed), wanted)
        return [
            Leaf(path, part.kind, error, limits[path], path in zero)
            for path, error in found.items()
        ]

    def end_to_end(self, computed: Computed) -> list[Leaf]:
        """The updates of each one's own gradients, where updates are compared."""
        compared = any(part.kind == "update" for part in self.parts)
        return self.leaves(END_TO_END, computed) if compared else []


def doubled(experiment: Experiment) -> Experiment:
    """The experiment in float64, its optimizer's moments, too."""
    optim = dataclasses.replace(experiment.optim, moments="float32")
    return dataclasses.replace(experiment, precision=DOUBLE, optim=optim)


def errors(part: Part, got: Mapping[str, Any], wanted) -> dict[str, float]:
    """Each leaf's largest difference on any device, as a share of the leaf."""
    if got.keys() != wanted.keys():
        raise UserError(
            f"{part.kind}: a layout computes {sorted(got)}, one device "
            f"{sorted(wanted)}."
        )
    largest = sizes(part, wanted)
    return {
        path: max(
            (score(gap, want, largest[path]) for _, _, gap in gaps(got[path], want)),
            default=0.0,
        )
        for path, want in wanted.items()
    }


def sizes(part: Part, wanted: Mapping[str, np.ndarray]) -> dict[str, float]:
    """For each leaf the largest number among those of its kind."""
    kinds: dict[str, float] = {}
    for path, want in wanted.items():
        kind = _kind(part, path)
        kinds[kind] = max(kinds.get(kind, 0.0), largest_of(want))
    return {path: kinds[_kind(part, path)] for path in wanted}


def gaps(got, want: np.ndarray) -> Iterator[tuple[Any, tuple, np.ndarray]]:
    """For each device: itself, the piece it holds, how far that is off.

    Copies are compared one by one, so devices that disagree are found.
    """
    if not isinstance(got, jax.Array):
        whole = (slice(None),) * want.ndim
        yield None, whole, _gap(np.asarray(got), want)
        return
    if got.shape != want.shape:
        raise UserError(f"Shape {got.shape} on a layout, {want.shape} on one device.")
    for shard in got.addressable_shards:
        piece = _gap(np.asarray(shard.data), want[shard.index])
        yield shard.device, shard.index, piece


def score(gap: np.ndarray, want: np.ndarray, largest: float) -> float:
    """A difference as a share of the leaf, or of FLOOR x the largest of its kind."""
    top = float(np.max(gap, initial=0.0))
    scale = max(largest_of(want), FLOOR * largest)
    return top / scale if scale else (0.0 if top == 0 else float("inf"))


def largest_of(x: np.ndarray) -> float:
    return float(np.max(np.abs(x.astype(np.float64)), initial=0.0))


def _gap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b|, infinite where only one of them is a number."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where(a == b, 0.0, np.abs(a - b))
    return np.where(np.isnan(gap), np.inf, gap)


def _kind(part: Part, path: str) -> str:
    # The moments differ in size by nature.
    return path.partition("/")[0] if part.kind == "state" else part.kind


def _zeros(part: Part, wanted: Mapping[str, np.ndarray]) -> set[str]:
    """The gradients of which one device has nothing but rounding."""
    if part.kind != "gradient":
        return set()
    largest = sizes(part, wanted)
    return {p for p, want in wanted.items() if largest_of(want) <= LIMIT * largest[p]}
