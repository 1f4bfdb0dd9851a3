"""Errors of a layout against one device, leaf by leaf, and their limits."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpar.errors import UserError
from jaxpar.experiment import Experiment
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision
from jaxpar.pipeline.layer_order import in_stored_order
from jaxpar.tree import flatten
from jaxpar.verify.computed import Computed
from jaxpar.verify.packed_rows import Packed
from jaxpar.verify.parts import END_TO_END, LOGITS, PARTS, TOKENS, Part
from jaxpar.verify.proof import Leaf

LIMIT = 1e-12
"""Largest relative error in float64. Correct layouts have some 1e-15, wrong ones far
more than this."""
FLOOR = 1e-3
"""An error is relative to its leaf, or to this fraction of the largest leaf of its kind
if the leaf is smaller."""
FACTOR = 4.0
"""How many times one device's own rounding error a layout may have: 1.9 is the most
that was seen, of bfloat16 and float32, on tensor=8 and fsdp=8."""
OF_PARAMETERS = ("init", "gradient", "bias", "update", "state", "end-to-end")
"""The kinds of what is compared that have the axes of parameters."""
FLOAT64 = Precision(params="float64", compute="float64", reduce="float64")


class Reference:
    """An experiment on one device, computed once and compared with many layouts.

    precision: compare in the experiment's own precision, and limit each leaf by the
    error that one device has in it, relative to float64. only: the one (row, target)
    that counts in the loss. parts: what is compared; None compares everything.

    Attributes: `one` is the experiment on one device, in the precision of the
    comparison; `exact` is the same in float64.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        precision: bool = False,
        only: tuple[int, int] | None = None,
        parts: Sequence[Part] | None = None,
    ):
        self.experiment = experiment if precision else in_float64(experiment)
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
            self.exact = Computed(
                in_float64(experiment), one_device, self.windows, given=self.one
            )
        self._wanted: dict[Part, dict[str, np.ndarray]] = {}
        self._limits: dict[Part, dict[str, float]] = {}

    def compile(self, *computed: Computed) -> None:
        """Begins to compile all parts, for one device and for other layouts."""
        for program in filter(None, (part.program for part in self.parts)):
            for each in dict.fromkeys((self.exact, self.one, *computed)):
                program(each)

    def on(self, layout: Layout) -> Computed:
        """The experiment on a layout, with one device's parameters and gradients."""
        return Computed(self.experiment, layout, self.windows, given=self.one)

    def wanted(self, part: Part) -> dict[str, np.ndarray]:
        """The leaves of a part as one device computes them, by path."""
        if part not in self._wanted:
            source = self.one if part.exact else self.exact
            # Not with jax.tree.map, which would sort the names.
            leaves = part.read(source).items()
            self._wanted[part] = {path: np.asarray(leaf) for path, leaf in leaves}
        return self._wanted[part]

    def wanted_on(self, part: Part, computed: Computed) -> dict[str, np.ndarray]:
        """The same, the layers of parameters in the order of a layout."""
        wanted, layout = self.wanted(part), computed.layout
        if layout.n_rounds == 1 or part.kind not in OF_PARAMETERS:
            return wanted
        names = flatten(computed.anatomy.names)
        return {
            path: in_stored_order(x, axes_of(path, names), layout)
            for path, x in wanted.items()
        }

    def limits(self, part: Part) -> dict[str, float]:
        """The relative error below which each leaf of a part passes."""
        if part not in self._limits:
            wanted = self.wanted(part)
            if self.exact is self.one or part.exact:
                self._limits[part] = dict.fromkeys(
                    wanted, 0 if part.exact else part.limit or LIMIT
                )
            else:
                least = float(jnp.finfo(self.experiment.precision.compute).eps)
                rounding = errors(part, part.read(self.one), wanted)
                self._limits[part] = {
                    path: FACTOR * max(error, least) for path, error in rounding.items()
                }
        return self._limits[part]

    def leaves(self, part: Part, computed: Computed) -> list[Leaf]:
        """The leaves of a part with their errors and limits."""
        wanted, limits = self.wanted_on(part, computed), self.limits(part)
        largest = largest_of_kind(part, wanted)

        def is_zero(path: str) -> bool:
            """Whether a gradient is nothing but rounding on one device."""
            least = LIMIT * largest[path]
            return part.kind == "gradient" and largest_magnitude(wanted[path]) <= least

        return [
            Leaf(path, part.kind, error, limits[path], is_zero(path))
            for path, error in errors(part, part.read(computed), wanted).items()
        ]

    def end_to_end(self, computed: Computed) -> list[Leaf]:
        """The updates from a layout's own gradients; empty if none are compared."""
        compares_updates = any(part.kind == "update" for part in self.parts)
        return self.leaves(END_TO_END, computed) if compares_updates else []


def axes_of(path: str, names: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The axis names of a parameter, or of one of its moments (see parts.moments)."""
    moment = path.partition("/")[2].rstrip("'")
    return names.get(path) or names.get(moment) or ()


def in_float64(experiment: Experiment) -> Experiment:
    """The experiment in float64, including the optimizer's moments."""
    # "float32" is a lower bound here: the moments of float64 parameters are float64.
    optim = dataclasses.replace(experiment.optim, moments="float32")
    return dataclasses.replace(experiment, precision=FLOAT64, optim=optim)


def errors(
    part: Part, got: Mapping[str, Any], wanted: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """The largest relative error of each leaf on any device, by path.

    Raises:
      UserError: the leaves have other names or shapes than on one device.
    """
    if got.keys() != wanted.keys():
        raise UserError(
            f"{part.kind}: a layout computes {sorted(got)}, one device "
            f"{sorted(wanted)}."
        )
    largest = largest_of_kind(part, wanted)
    return {
        path: max(
            (
                relative_error(difference.values, want, largest[path])
                for difference in differences(got[path], want)
            ),
            default=0.0,
        )
        for path, want in wanted.items()
    }


def largest_of_kind(part: Part, wanted: Mapping[str, np.ndarray]) -> dict[str, float]:
    """For each leaf, the largest magnitude in any leaf of its kind."""
    kinds: dict[str, float] = {}
    for path, want in wanted.items():
        kind = _kind(part, path)
        kinds[kind] = max(kinds.get(kind, 0.0), largest_magnitude(want))
    return {path: kinds[_kind(part, path)] for path in wanted}


class Difference(NamedTuple):
    """How far one device's piece of an array is off; the device is None for NumPy."""

    device: Any
    slices: tuple[slice, ...]
    values: np.ndarray


def differences(
    got: jax.Array | np.ndarray | float, want: np.ndarray
) -> Iterator[Difference]:
    """Compares each device's piece of an array.

    Copies are compared one by one, so that devices which disagree are noticed.
    """
    if not isinstance(got, jax.Array):
        whole = (slice(None),) * want.ndim
        yield Difference(None, whole, _difference(np.asarray(got), want))
        return
    if got.shape != want.shape:
        raise UserError(f"Shape {got.shape} on a layout, {want.shape} on one device.")
    for shard in got.addressable_shards:
        values = _difference(np.asarray(shard.data), want[shard.index])
        yield Difference(shard.device, shard.index, values)


def relative_error(difference: np.ndarray, want: np.ndarray, largest: float) -> float:
    """A difference relative to the leaf, or to FLOOR x the largest of its kind."""
    error = float(np.max(difference, initial=0.0))
    scale = max(largest_magnitude(want), FLOOR * largest)
    return error / scale if scale else (0.0 if error == 0 else float("inf"))


def largest_magnitude(x: np.ndarray) -> float:
    """The maximum norm of an array; 0 if it is empty."""
    return float(np.max(np.abs(x.astype(np.float64)), initial=0.0))


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b|; infinite where either is a NaN."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.where(a == b, 0.0, np.abs(a - b))
    return np.where(np.isnan(difference), np.inf, difference)


def _kind(part: Part, path: str) -> str:
    # First and second moments have different magnitudes.
    return path.partition("/")[0] if part.kind == "state" else part.kind
