"""Layouts such as fsdp=4,tensor=2: their words, and how each splits named axes."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from jaxpar.config import Spelled
from jaxpar.errors import UserError
from jaxpar.partition.layout_words import (
    CONTEXT_WORDS,
    DATA_WORDS,
    EXPERT,
    STAGE,
    words_of,
)
from jaxpar.partition.mesh import mesh
from jaxpar.partition.rules import MESH_AXES, Rule, Rules, if_free
from jaxpar.partition.zigzag import zigzag

Dims = tuple[tuple[str, ...], ...]
"""The mesh axes that split each dimension of an array."""


@dataclasses.dataclass(frozen=True)
class Layout(Spelled):
    """A mesh shape, and the rules by which arrays are split over the mesh; a value.

    It never touches a device. The three sets of rules are those of one array at
    different times: under `fsdp`, `stored` splits a weight over the data axis, and
    `computed` gathers it for a product.
    """

    spelling: str
    """Canonical text, such as fsdp=4,tensor=2; the inverse of `parse`."""
    mesh_shape: tuple[tuple[str, int], ...]
    """Mesh axes with their sizes, from the slowest to the fastest network."""
    stored: Rules
    """How parameters are split between steps, and their gradients once reduced."""
    optimizer: Rules
    """How the optimizer's state, such as Adam's moments, is split."""
    computed: Rules
    """How activations, and parameters while they are used, are split in the model."""
    attention: str = ""
    """How queries reach keys elsewhere: one of CONTEXT_WORDS; "" where seq is whole."""
    n_rounds: int = 1
    """How often a pipeline goes round its stages (see jaxpar.pipeline.layer_order)."""

    @classmethod
    def parse(cls, text: str) -> "Layout":
        """The layout of a text such as "fsdp=4,tensor=2", in any order of its words.

        Raises:
          UserError: a word is unknown, repeated or contradicts another.
        """
        return _build(words_of(text))

    @property
    def sizes(self) -> dict[str, int]:
        """Mesh axis to size, in the order of the mesh."""
        return dict(self.mesh_shape)

    @property
    def n_devices(self) -> int:
        """The number of devices of the mesh."""
        return math.prod(self.sizes.values())

    @property
    def batch_divisor(self) -> int:
        """How many pieces the batch is split into; divides every batch size."""
        (mesh_axes,) = self.split(("batch",), "computed")
        return math.prod(self.sizes[axis] for axis in mesh_axes)

    @property
    def n_stages(self) -> int:
        """Stages of the pipeline; 1 without one."""
        return self.sizes.get(STAGE, 1)

    @property
    def reorders_seq(self) -> bool:
        """Whether a row's tokens stand in another order than their own."""
        return self.attention in ("context", "ring")

    def without(self, axes: Sequence[str]) -> "Layout | None":
        """The same layout over the other mesh axes alone; None where none is left."""
        left = tuple((axis, n) for axis, n in self.mesh_shape if axis not in axes)
        return dataclasses.replace(self, mesh_shape=left) if left else None

    def for_generation(self) -> "Layout":
        """The same mesh with whole rows: the axes that split `seq` split the batch."""
        seq_axes = tuple(axis for axis in self.computed.seq if isinstance(axis, str))
        computed = dataclasses.replace(
            self.computed, batch=self.computed.batch + seq_axes, seq=()
        )
        stored = dataclasses.replace(self.stored, layers=())
        return dataclasses.replace(
            self, stored=stored, computed=computed, attention="", n_rounds=1
        )

    def token_numbers(self, length: int) -> np.ndarray:
        """The number of the token at each place of a row, [length].

        In order, except for causal attention over a split sequence (see zigzag).

        Raises:
          UserError: the sequence's pieces do not divide the length.
        """
        (mesh_axes,) = self.split(("seq",), "computed")
        pieces = math.prod(self.sizes[axis] for axis in mesh_axes)
        chunks = math.lcm(2 * self.sizes["context"] if self.reorders_seq else 1, pieces)
        if length % chunks:
            below = length - length % chunks
            raise UserError(
                f"seq_len={length} is not divisible by {chunks}, as layout "
                f"{self.spelling} needs; the nearest legal sizes are "
                f"{below or chunks} and {(below or chunks) + chunks}."
            )
        tokens = np.arange(length)
        return zigzag(tokens, self.sizes["context"]) if self.reorders_seq else tokens

    def abstract(self) -> AbstractMesh:
        """The mesh without devices, to check shapes at any size."""
        names = tuple(self.sizes)
        return AbstractMesh(
            tuple(self.sizes.values()), names, axis_types=(AxisType.Auto,) * len(names)
        )

    def on(self, devices: Sequence[Any]) -> "Placed":
        """This layout on exactly these devices.

        Raises:
          UserError: there are more or fewer than the mesh has.
        """
        if len(devices) != self.n_devices:
            raise UserError(
                f"Layout {self.spelling} needs {self.n_devices} devices; it was given "
                f"{len(devices)}."
            )
        return Placed(self, mesh(self.sizes, devices))

    def split(
        self,
        names: Sequence[str | None],
        which: str,
        beside: Sequence[Sequence[str | None]] = (),
    ) -> Dims:
        """The axes of this mesh that split each dimension of an array.

        which: the rules of arrays that are stored, optimizer or computed. beside: the
        names of arrays that are used together with this one (see Rules.resolve).
        """
        rules: Rules = getattr(self, which)
        dims = rules.resolve(names, beside)
        return tuple(tuple(axis for axis in dim if axis in self.sizes) for dim in dims)

    def spec(
        self,
        names: Sequence[str | None],
        which: str = "computed",
        beside: Sequence[Sequence[str | None]] = (),
    ) -> PartitionSpec:
        """JAX's PartitionSpec of an array; the arguments are those of `split`."""
        dims = [dim or None for dim in self.split(names, which, beside)]
        return PartitionSpec(*(d[0] if d and len(d) == 1 else d for d in dims))

    def check(
        self,
        path: str,
        shape: Sequence[int],
        names: Sequence[str | None],
        which: str = "stored",
    ) -> None:
        """Refuses an array whose dimensions its mesh axes do not divide.

        Raises:
          UserError: names the array by its path, the axis, and the nearest legal size.
        """
        if len(shape) != len(names):
            raise UserError(f"{path}: shape {shape} does not have the axes {names}.")
        for size, name, dim in zip(shape, names, self.split(names, which), strict=True):
            pieces = math.prod(self.sizes[axis] for axis in dim)
            pieces *= self.n_rounds if STAGE in dim and name == "layers" else 1
            if size % pieces:
                below = size - size % pieces
                nearest = f"{below} or {below + pieces}" if below else f"{pieces}"
                raise UserError(
                    f"{path} {tuple(shape)}: axis {name!r} of size {size} is not "
                    f"divisible by {pieces} ({', '.join(dim)} of layout "
                    f"{self.spelling}); the nearest legal size is {nearest}."
                )

    def piece(
        self,
        shape: Sequence[int],
        names: Sequence[str | None],
        which: str = "stored",
    ) -> tuple[int, ...]:
        """The shape of the piece of an array that one device holds."""
        return tuple(
            size // math.prod(self.sizes[axis] for axis in dim)
            for size, dim in zip(shape, self.split(names, which), strict=True)
        )


def as_layout(layout: Layout | str) -> Layout:
    """The layout itself, or the one that a text spells."""
    return Layout.parse(layout) if isinstance(layout, str) else layout


@dataclasses.dataclass(frozen=True)
class Placed:
    """A layout on real devices; whatever makes arrays takes one."""

    layout: Layout
    """How arrays are split."""
    mesh: Mesh
    """The devices, arranged in the layout's mesh."""

    def sharding(
        self, names: Sequence[str | None], which: str = "computed"
    ) -> NamedSharding:
        """JAX's sharding of an array with these axis names (see Layout.split)."""
        return NamedSharding(self.mesh, self.layout.spec(names, which))

    def for_generation(self) -> "Placed":
        """The same devices with whole rows (see Layout.for_generation)."""
        return Placed(self.layout.for_generation(), self.mesh)

    @property
    def platform(self) -> str:
        """What the devices are: cpu, gpu or tpu; "" of a mesh without devices."""
        real = not isinstance(self.mesh, AbstractMesh)
        platform = self.mesh.devices.flat[0].platform if real else ""
        return "gpu" if platform in ("cuda", "rocm") else platform

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of an array of which every device holds a copy."""
        return NamedSharding(self.mesh, PartitionSpec())


def _build(words: dict[str, str]) -> Layout:
    def word_above_1(group: tuple[str, ...]) -> str:
        return next((word for word in group if int(words.get(word, 1)) > 1), "")

    data_word = word_above_1(DATA_WORDS) or "data"
    attention = word_above_1(CONTEXT_WORDS)
    tensor, _, sequence_parallel = words.get("tensor", "1").partition("+")
    n_stages, _, n_rounds = words.get(STAGE, "1").partition("x")
    sizes = {
        "replica": int(words.get("replica", 1)),
        STAGE: int(n_stages),
        "data": int(words.get(data_word, 1)),
        "context": int(words.get(attention, 1)),
        EXPERT: int(words.get(EXPERT, 1)),
        "tensor": int(tensor),
    }
    sizes = {axis: sizes[axis] for axis in MESH_AXES if sizes.get(axis, 1) > 1}
    # JAX accepts no sharding constraint on an empty mesh, so one axis of size 1 stays.
    sizes = sizes or {"data": 1}
    spelled = {
        {"data": data_word, "context": attention}.get(axis, axis): str(n)
        for axis, n in sizes.items()
    }
    if int(n_rounds or 1) > 1:
        spelled[STAGE] += f"x{int(n_rounds)}"
    seq: Rule = ("context",)
    if sequence_parallel and "tensor" in sizes:
        spelled["tensor"] += "+sp"
        seq = ("context", if_free("tensor"))
    over_tensor: dict[str, Any] = {
        name: "tensor" for name in ("heads", "kv_heads", "mlp", "vocab")
    }
    split: dict[str, Any] = {"experts": (EXPERT,), **over_tensor}
    whole = Rules(layers=(STAGE,), **split)
    embed: Rule = ("data", "context", if_free(EXPERT))
    sliced = Rules(layers=(STAGE,), embed=embed, **split)
    return Layout(
        spelling=",".join(f"{word}={n}" for word, n in spelled.items()),
        mesh_shape=tuple(sizes.items()),
        stored=sliced if data_word == "fsdp" else whole,
        optimizer=whole if data_word == "data" else sliced,
        computed=Rules(batch=("replica", STAGE, "data", EXPERT), seq=seq, **split),
        attention=attention,
        n_rounds=int(n_rounds or 1),
    )
