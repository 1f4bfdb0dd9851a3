"""Copies on several devices are bit-equal, or the device that differs is named.

pytest tests/guard/test_replicas.py
"""

import dataclasses
import itertools
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxpar.errors import UserError
from jaxpar.guard import replicas
from jaxpar.guard.replicas import describe, find_differences, hash_of
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition import cluster
from jaxpar.partition.layout import Layout
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe, create

MODEL = sizes.llama(
    vocab_size=64, n_layers=2, d_embed=16, n_heads=4, n_kv_heads=4, d_mlp=32,
    max_positions=16,
)  # fmt: skip
RECIPE = Recipe(MODEL, CausalLM(), AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=9))
# Every layout here has copies of `norm/scale`, which some of them split.
LAYOUTS = ("data=8", "fsdp=4,tensor=2", "replica=2,fsdp=4", "zero1=4,tensor=2")


def placed(text):
    layout = Layout.parse(text)
    return layout.on(jax.devices()[: layout.n_devices])


def state_on(layout):
    return create(RECIPE, placed(layout), seed=0)


def altered(array, device, change):
    """The array with another copy on one device; change: of the host's shard."""
    shards = []
    for shard in array.addressable_shards:
        data = np.asarray(shard.data)
        if shard.device.id == device:
            data = change(data.copy())
        shards.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


def with_leaf(state, path, device, change):
    """The state with one parameter's copy altered on a device."""
    *folders, name = path.split("/")
    params = jax.tree.map(lambda x: x, state.params)
    inner = params
    for folder in folders:
        inner = inner[folder]
    inner[name] = altered(inner[name], device, change)
    return dataclasses.replace(state, params=params)


def add_half(data):
    data.reshape(-1)[data.size // 2] += 0.5
    return data


@pytest.mark.parametrize("layout", [*LAYOUTS, "fsdp=8", "data=1"])
def test_the_copies_of_a_sound_state_are_equal(layout):
    assert find_differences(state_on(layout)) == []


@pytest.mark.parametrize("device", [0, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_device_with_another_copy_is_named(layout, device):
    state = with_leaf(state_on(layout), "norm/scale", device, add_half)
    (found,) = find_differences(state)
    assert found.path == "params/norm/scale"
    assert any(f"cpu:{device} " in name for name in found.devices)
    slices = {str(s.index) for s in state.params["norm"]["scale"].addressable_shards}
    copies = 8 // len(slices)
    # Of two copies nobody knows which is right.
    assert found.has_majority == (copies > 2)
    assert len(found.devices) == (1 if copies > 2 else 2)


@pytest.mark.parametrize(
    ("spec", "device", "named"),
    [(P("b"), 6, [2, 6]), (P(None, "a"), 3, [3]), (P(), 7, [7])],
)
def test_slices_are_compared_with_copies_of_the_same_slice(spec, device, named):
    mesh = jax.make_mesh(
        (2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    x = jax.device_put(jnp.arange(64.0).reshape(8, 8), NamedSharding(mesh, spec))
    assert find_differences([x]) == []
    (found,) = find_differences([altered(x, device, add_half)])
    assert [n.split()[1] for n in found.devices] == [f"cpu:{i}" for i in named]


def test_without_a_majority_all_holders_are_named():
    state = state_on("data=8")
    for device in range(4):
        state = with_leaf(state, "norm/scale", device, add_half)
    (found,) = find_differences(state)
    assert not found.has_majority
    assert len(found.devices) == 8


def flip_zero(data):
    data[data == 0] = -0.0
    return data


def other_nan(data):
    bits = data.view(f"u{data.itemsize}")
    bits[np.isnan(data)] |= 1
    return data


def flip_two_signs(data):
    data[:2] *= -1
    return data


@pytest.mark.parametrize("change", [flip_zero, other_nan, flip_two_signs])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_bits_are_compared_not_numbers(dtype, change):
    with jax.enable_x64(dtype == "float64"):
        whole = np.array([1, 2, 0, np.nan, 0, 3], jnp.dtype(dtype))
        x = jax.device_put(whole, placed("data=8").replicated)
        assert find_differences({"x": x}) == []
        (found,) = find_differences({"x": altered(x, 2, change)})
    assert found.devices[0].startswith("device cpu:2 of process 0")


@pytest.mark.parametrize("dtype", [bool, "int8", "uint16", "int32", "complex64"])
def test_every_type_is_hashed_by_value_and_place(dtype):
    x = np.array([[0, 1, 1], [0, 0, 1]], dtype)
    seen = {int(hash_of(jnp.asarray(x)))}
    for i, j in itertools.product(range(2), range(3)):
        y = x.copy()
        y[i, j] = not y[i, j]
        seen.add(int(hash_of(jnp.asarray(y))))
    for y in (x[::-1], x[:, ::-1], x.reshape(3, 2)[[1, 0, 2]].reshape(2, 3)):
        seen.add(int(hash_of(jnp.asarray(y))))
    assert len(seen) == 10


def test_random_keys_scalars_and_empty_arrays_have_hashes():
    tree = {"key": jax.random.key(3), "step": jnp.int32(4), "none": jnp.zeros((0, 3))}
    tree = jax.device_put(tree, placed("data=8").replicated)
    assert find_differences(tree) == []


def test_arrays_on_several_meshes_are_refused():
    meshes = [placed("data=8"), placed("data=4,tensor=2")]
    tree = [jax.device_put(jnp.ones(8), p.replicated) for p in meshes]
    with pytest.raises(UserError, match="2 meshes"):
        find_differences(tree)


def test_processes_answer_alike_and_name_the_other_s_device(monkeypatch):
    sent = []

    def gather(value):
        """Two processes; the other one's device 9 differs in the second array."""
        sent.append(value)
        if isinstance(value, dict):
            return [value, {"host": "far", "rows": [[8, [1, 5]], [9, [1, 6]]]}]
        return [value, [[8, "same"], [9, "other"]]]

    monkeypatch.setattr(cluster, "gather", gather)
    rows = {i: np.array([1, 5], np.uint32) for i in range(8)}
    groups = [np.zeros(10, int), np.zeros(10, int)]
    devices = [*jax.devices(), *jax.devices()[:2]]
    assert not replicas._all_equal(rows, groups)
    (found,) = replicas._differences(rows, groups, ["a", "b"], devices)
    assert found.path == "b"
    assert [name.rpartition(" ")[2] for name in found.devices] == ["far"]
    assert len(sent[0]) == 8
    assert all(len(digests) == 2 for digests in sent[0])


TWO = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxpar.guard.replicas import describe, find_differences
from jaxpar.partition import cluster
from jaxpar.partition.layout import Layout
from tests.guard.test_replicas import add_half, altered

jax.config.update("jax_num_cpu_devices", 4)
cluster.start(sys.argv[1], 2, int(sys.argv[2]))
mesh = Layout.parse("data=4,tensor=2").on(jax.devices()).mesh
make = jax.make_array_from_callback
tree = {
    name: make((8,), NamedSharding(mesh, spec), lambda i: np.ones(8, np.float32)[i])
    for name, spec in (("a", P()), ("b", P("tensor")), ("c", P("data")))
}
assert find_differences(tree) == []
odd = jax.devices()[5]
tree["b"] = altered(tree["b"], odd.id, add_half)
print(odd.process_index, odd.id, describe(find_differences(tree)))
"""


@pytest.mark.slow
def test_two_processes_name_the_same_device():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, address, str(i)],
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        for i in range(2)
    ]
    said = [child.communicate(timeout=120)[0].strip() for child in children]
    assert said[0] == said[1]
    process, device, found = said[0].split(" ", 2)
    assert found.startswith(f"device cpu:{device} of process {process} on ")
    assert "holds other bits of b than most devices" in found


def test_a_message_names_each_device_once():
    found = find_differences(
        {
            name: altered(
                jax.device_put(jnp.ones(4), placed("data=8").replicated), 1, add_half
            )
            for name in "abc"
        }
    )
    assert describe(found).count("cpu:1") == 1
    assert "a and 2 more" in describe(found)
