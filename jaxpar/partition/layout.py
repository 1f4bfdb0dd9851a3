"""A layout: where every named axis of an array lives on a device mesh."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpar.config import Spelled
from jaxpar.errors import UserError
from jaxpar.partition.mesh import mesh
from jaxpar.partition.rules import MESH_AXES, Rule, Rules, if_free

DATA_WORDS = ("data", "zero1", "fsdp")
CONTEXT_WORDS = ("context", "ring", "ulysses")
BUILT = ("replica", *DATA_WORDS, *CONTEXT_WORDS, "tensor")
NOT_BUILT = ("stage", "expert")


@dataclasses.dataclass(frozen=True)
class Layout(Spelled):
    """A value: mesh sizes, and rules where arrays are stored, kept and computed.

    It never touches a device. `spelling` and `parse` are inverse. `attention` says how
    queries reach the keys of other pieces of the sequence: one of CONTEXT_WORDS, or ""
    where the sequence is whole.
    """

    spelling: str
    mesh_shape: tuple[tuple[str, int], ...]
    stored: Rules
    optimizer: Rules
    computed: Rules
    attention: str = ""

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """The layout that words such as "fsdp=4,tensor=2" spell."""
        return _build(_words(text))

    @property
    def sizes(self) -> dict[str, int]:
        """Mesh axis to size, in mesh order."""
        return dict(self.mesh_shape)

    @property
    def n_devices(self) -> int:
        return math.prod(self.sizes.values())

    @property
    def batch_divisor(self) -> int:
        """How many pieces the batch is split into."""
        (split,) = self.computed.resolve(("batch",))
        return math.prod(self.sizes.get(axis, 1) for axis in split)

    def for_generation(self) -> "Layout":
        """The same mesh with whole rows: what owned `seq` splits the batch."""
        owners = tuple(axis for axis in self.computed.seq if isinstance(axis, str))
        computed = dataclasses.replace(
            self.computed, batch=self.computed.batch + owners, seq=()
        )
        return dataclasses.replace(self, computed=computed, attention="")

    def token_numbers(self, length: int) -> np.ndarray:
        """Which token of a row stands where, [length]; as it is, or in zigzag.

        With C pieces a device gets the i-th of 2C chunks and the i-th from the end:
        then each has as much of a causal triangle as any other (Brandon et al., 2023).

        Raises:
          ValueError: the pieces do not divide the length.
        """
        (axes,) = self.split(("seq",), "computed")
        ways = math.prod(self.sizes[axis] for axis in axes)
        zigzag = self.attention in ("context", "ring")
        chunks = math.lcm(2 * self.sizes["context"], ways) if zigzag else ways
        if length % chunks:
            below = length - length % chunks
            raise UserError(
                f"seq_len={length} is not divisible by {chunks}, as layout "
                f"{self.spelling} needs; the nearest legal sizes are "
                f"{below or chunks} and {(below or chunks) + chunks}."
            )
        tokens = np.arange(length)
        if not zigzag:
            return tokens
        pieces = tokens.reshape(2, self.sizes["context"], -1)
        first, last = pieces[0], pieces[1, ::-1]
        return np.concatenate([first, last], axis=1).reshape(-1)

    def abstract(self) -> AbstractMesh:
        """The mesh without devices, for shapes, pieces and errors at any size."""
        names = tuple(self.sizes)
        return AbstractMesh(
            tuple(self.sizes.values()), names, axis_types=(AxisType.Auto,) * len(names)
        )

    def on(self, devices: Sequence[Any]) -> "Placed":
        """This layout on exactly these devices."""
        if len(devices) != self.n_devices:
            raise UserError(
                f"Layout {self.spelling} needs {self.n_devices} devices; it was given "
                f"{len(devices)}."
            )
        return Placed(self, mesh(self.sizes, devices))

    def split(
        self, names: Sequence[str | None], which: str, beside=()
    ) -> tuple[tuple, ...]:
        """The mesh axes, present in this mesh, of each dimension of an array."""
        resolved = getattr(self, which).resolve(names, beside)
        return tuple(tuple(a for a in dim if a in self.sizes) for dim in resolved)

    def spec(self, names: Sequence[str | None], which: str = "computed", beside=()):
        """The PartitionSpec of an array: which is stored, optimizer or computed."""
        dims = [dim or None for dim in self.split(names, which, beside)]
        return PartitionSpec(*(d[0] if d and len(d) == 1 else d for d in dims))

    def check(self, path: str, shape, names, which: str = "stored") -> None:
        """Refuses an array whose dimensions its mesh axes do not divide."""
        if len(shape) != len(names):
            raise UserError(f"{path}: shape {shape} has not the axes {names}.")
        for size, name, dim in zip(shape, names, self.split(names, which), strict=True):
            ways = math.prod(self.sizes[axis] for axis in dim)
            if size % ways:
                below = size - size % ways
                near = f"{below} or {below + ways}" if below else f"{ways}"
                raise UserError(
                    f"{path} {tuple(shape)}: axis {name!r} of size {size} is not "
                    f"divisible by {ways} ({', '.join(dim)} of layout "
                    f"{self.spelling}); the nearest legal size is {near}."
                )

    def piece(self, shape, names, which: str = "stored") -> tuple[int, ...]:
        """The shape of what one device holds."""
        return tuple(
            size // math.prod(self.sizes[axis] for axis in dim)
            for size, dim in zip(shape, self.split(names, which), strict=True)
        )


def as_layout(layout: Layout | str) -> Layout:
    """A layout, given as one or by its spelling."""
    return Layout.parse(layout) if isinstance(layout, str) else layout


@dataclasses.dataclass(frozen=True)
class Placed:
    """A layout on real devices: what everything that makes arrays takes."""

    layout: Layout
    mesh: Mesh

    def sharding(self, names, which: str = "computed") -> NamedSharding:
        return NamedSharding(self.mesh, self.layout.spec(names, which))

    def for_generation(self) -> "Placed":
        """The same devices with whole rows."""
        return Placed(self.layout.for_generation(), self.mesh)

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())


def _words(text: str) -> dict[str, str]:
    words: dict[str, str] = {}
    for part in text.replace(" ", "").split(","):
        word, _, value = part.partition("=")
        if word in NOT_BUILT:
            raise UserError(
                f"Layout {text!r}: {part!r} is not built yet; there are "
                f"{', '.join(BUILT)}."
            )
        if word not in BUILT:
            raise UserError(
                f"Layout {text!r}: unknown mesh axis {word!r}; there are "
                f"{', '.join(BUILT)}, as in fsdp=4,tensor=2."
            )
        if word in words:
            raise UserError(f"Layout {text!r} says {word!r} twice.")
        size = value.removesuffix("+sp") if word == "tensor" else value
        if not size.isdigit() or int(size) < 1:
            raise UserError(f"Layout {text!r}: {word}={value!r} is no positive size.")
        words[word] = value
    for group in (DATA_WORDS, CONTEXT_WORDS):
        if sum(word in words for word in group) > 1:
            raise UserError(f"Layout {text!r}: at most one of {', '.join(group)}.")
    return words


def _build(words: dict[str, str]) -> Layout:
    def said(group: tuple[str, ...]) -> str:
        return next((word for word in group if int(words.get(word, 1)) > 1), "")

    kind, attention = said(DATA_WORDS) or "data", said(CONTEXT_WORDS)
    tensor, _, split = words.get("tensor", "1").partition("+")
    sizes = {
        "replica": int(words.get("replica", 1)),
        "data": int(words.get(kind, 1)),
        "context": int(words.get(attention, 1)),
        "tensor": int(tensor),
    }
    sizes = {axis: sizes[axis] for axis in MESH_AXES if sizes.get(axis, 1) > 1}
    # An empty mesh refuses every constraint, so one axis of size 1 stays.
    sizes = sizes or {"data": 1}
    spelled = {
        {"data": kind, "context": attention}.get(axis, axis): str(n)
        for axis, n in sizes.items()
    }
    seq: Rule = ("context",)
    if split and "tensor" in sizes:
        spelled["tensor"] += "+sp"
        seq = ("context", if_free("tensor"))
    wide: dict[str, Any] = {
        name: "tensor" for name in ("heads", "kv_heads", "mlp", "vocab")
    }
    whole, sliced = Rules(**wide), Rules(embed=("data", "context"), **wide)
    return Layout(
        spelling=",".join(f"{word}={n}" for word, n in spelled.items()),
        mesh_shape=tuple(sizes.items()),
        stored=sliced if kind == "fsdp" else whole,
        optimizer=whole if kind == "data" else sliced,
        computed=Rules(batch=("replica", "data"), seq=seq, **wide),
        attention=attention,
    )
