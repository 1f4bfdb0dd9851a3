"""Copies of arrays on several devices, compared bit for bit by a hash of each.

Each device hashes its own shards. The hash of a shard changes with every change of one
element; changes of several elements cancel out with a probability of 2**-32. What no
two devices hold a copy of, as the parameters of fsdp=8, cannot be compared.
"""

import dataclasses
import functools
import hashlib
import platform
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpar.errors import UserError
from jaxpar.partition import cluster
from jaxpar.tree import path_of

# Multipliers of Fibonacci hashing (Knuth) and of MurmurHash3's finalizer (Appleby).
SPREAD = np.uint32(0x9E3779B9)
MIX_1, MIX_2 = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)

Leaf = tuple[tuple[int, ...], PartitionSpec]
"""Shape of an array, and how it is split."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """An array of which some devices hold other bits than others."""

    path: str
    devices: tuple[str, ...]
    """Those that differ from the majority; without one, all that hold a copy."""
    has_majority: bool
    """Whether more than half of the copies are equal."""


def find_differences(tree: Any) -> list[Difference]:
    """The arrays of a tree whose copies on several devices are not bit-equal.

    Partly copied arrays count, such as those that are split over one mesh axis and
    copied over another. Every process calls it, and gets the same answer. It waits for
    the arrays; no array is copied to the host.

    Raises:
      UserError: the arrays are not on one mesh.
    """
    arrays = {
        path_of(keys): leaf
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
    }
    if not arrays:
        return []
    mesh = _mesh_of(arrays)
    copied = {
        path: leaf
        for path, leaf in arrays.items()
        if _groups(mesh, _leaf(leaf)).max() + 1 < mesh.size
    }
    if not copied:
        return []
    leaves = tuple(map(_leaf, copied.values()))
    hashes = _program(mesh, tuple(spec for _, spec in leaves))(list(copied.values()))
    rows = {
        shard.index[0].start or 0: np.asarray(shard.data)[0]
        for shard in hashes.addressable_shards
    }
    groups = [_groups(mesh, leaf) for leaf in leaves]
    if _all_equal(rows, groups):
        return []
    return _differences(rows, groups, list(copied), list(mesh.devices.flat))


def describe(found: list[Difference]) -> str:
    """Which devices hold other bits, and of which arrays, as one clause."""
    by_devices: dict[tuple[tuple[str, ...], bool], list[str]] = {}
    for one in found:
        by_devices.setdefault((one.devices, one.has_majority), []).append(one.path)
    clauses = []
    for (devices, has_majority), paths in by_devices.items():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        names = ", ".join(devices)
        clauses.append(
            f"{names} holds other bits of {paths[0]}{more} than most devices"
            if has_majority
            else f"the copies of {paths[0]}{more} on {names} differ"
        )
    return "; ".join(clauses)


def hash_of(x: jax.Array) -> jax.Array:
    """A hash of an array's bits and their places; a scalar, uint32."""
    bits = _bits(x)
    place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        numbers = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place, stride = place + numbers * np.uint32(stride), stride * bits.shape[axis]
        stride %= 2**32
    # For each place one to one in the bits, so that no change of one element is missed.
    mixed = bits + place * SPREAD
    mixed = (mixed ^ (mixed >> 16)) * MIX_1
    mixed = (mixed ^ (mixed >> 13)) * MIX_2
    return jnp.sum(mixed ^ (mixed >> 16), dtype=jnp.uint32)


def _bits(x: jax.Array) -> jax.Array:
    """The bits of an array, as uint32."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        x = jnp.stack([x.real, x.imag])
    size = x.dtype.itemsize
    if size < 4 and not jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.uint32)
    narrow = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, narrow).astype(jnp.uint32)


@functools.cache
def _program(mesh: Mesh, specs: tuple[PartitionSpec, ...]) -> Callable:
    """A jitted function from arrays to their hashes on each device, [devices, arrays].

    In shard_map a device sees only its own shards, so nothing is taken to be equal.
    """

    def on_one_device(shards: list[jax.Array]) -> jax.Array:
        return jnp.stack([hash_of(shard) for shard in shards])[None]

    return jax.jit(
        jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(list(specs),),
            out_specs=PartitionSpec(mesh.axis_names),
            check_vma=False,
        )
    )


def _mesh_of(arrays: dict[str, jax.Array]) -> Mesh:
    """The mesh of all arrays."""
    meshes = set()
    for path, leaf in arrays.items():
        if not isinstance(leaf.sharding, NamedSharding):
            raise UserError(f"{path} is not on a mesh, so its copies have no names.")
        meshes.add(leaf.sharding.mesh)
    if len(meshes) > 1:
        raise UserError(f"The arrays are on {len(meshes)} meshes; compare each alone.")
    return meshes.pop()


def _leaf(x: jax.Array) -> Leaf:
    sharding: Any = x.sharding  # A NamedSharding, as _mesh_of has made sure.
    return x.shape, sharding.spec


@functools.cache
def _groups(mesh: Mesh, leaf: Leaf) -> np.ndarray:
    """For each device of the mesh the number of the slice that it holds, [devices].

    Devices with equal numbers hold copies of one slice.
    """
    shape, spec = leaf
    indices = NamedSharding(mesh, spec).devices_indices_map(shape)
    numbers: dict[tuple, int] = {}
    held = []
    for device in mesh.devices.flat:
        bounds = zip(indices[device], shape, strict=True)
        key = tuple(part.indices(size)[:2] for part, size in bounds)
        held.append(numbers.setdefault(key, len(numbers)))
    return np.array(held)


def _all_equal(rows: dict[int, np.ndarray], groups: list[np.ndarray]) -> bool:
    """Whether all copies are equal, in all processes.

    For each way in which arrays are split, a device sends one digest of all hashes: a
    thousand processes exchange little.
    """
    kinds: dict[bytes, list[int]] = {}
    for i, group in enumerate(groups):
        kinds.setdefault(group.tobytes(), []).append(i)
    columns = list(kinds.values())
    mine = [
        [device, *(hashlib.sha256(row[c].tobytes()).hexdigest()[:16] for c in columns)]
        for device, row in rows.items()
    ]
    seen: dict[tuple[int, int], str] = {}
    for sent in cluster.gather(mine):
        for device, *digests in sent:
            for kind, digest in enumerate(digests):
                piece = kind, int(groups[columns[kind][0]][device])
                if seen.setdefault(piece, digest) != digest:
                    return False
    return True


def _differences(
    rows: dict[int, np.ndarray],
    groups: list[np.ndarray],
    paths: list[str],
    devices: list[Any],
) -> list[Difference]:
    """The arrays that differ, by the hashes of all processes."""
    mine = {"host": platform.node(), "rows": [[i, r.tolist()] for i, r in rows.items()]}
    everything, names = {}, {}
    for sent in cluster.gather(mine):
        for i, row in sent["rows"]:
            everything[i] = row
            names[i] = _name(devices[i], sent["host"])
    found = []
    for column, (path, group) in enumerate(zip(paths, groups, strict=True)):
        for number in range(group.max() + 1):
            holders = np.flatnonzero(group == number).tolist()
            values = {i: everything[i][column] for i in holders}
            (most, n), *others = Counter(values.values()).most_common()
            if not others:
                continue
            has_majority = n > len(holders) / 2
            odd = [i for i in holders if not has_majority or values[i] != most]
            found.append(Difference(path, tuple(names[i] for i in odd), has_majority))
    return found


def _name(device: Any, host: str) -> str:
    """A device, and where it is to be found."""
    return f"device {device} of process {device.process_index} on {host}"
