"""Updates are those of the formulas, computed in NumPy."""

import dataclasses
import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro

from jaxpar.errors import UserError
from jaxpar.optim.optimizer import AdamW, Muon, OptimConfig
from jaxpar.optim.schedule import NEVER
from jaxpar.optim.select import is_matrix
from jaxpar.partition.layout import Layout
from jaxpar.partition.sharding import single_device
from jaxpar.tree import flatten

NAMES = {
    "embedding": ("vocab", "embed"),
    "layers": {
        "mlp": {
            "w_up": ("layers", "embed", "mlp"),
            "w_down": ("layers", "mlp", "embed"),
            "b_up": ("layers", "mlp"),
        },
        "attn": {
            "w_q": ("layers", "embed", "heads", "head_dim"),
            "w_o": ("layers", "heads", "head_dim", "embed"),
        },
    },
}
SIZES = {"vocab": 16, "embed": 8, "layers": 2, "mlp": 16, "heads": 4, "head_dim": 4}
CONSTANT = frozenset({"layers/mlp/b_up"})
FLAT = {"peak_lr": 0.1, "warmup_steps": 0, "stable_steps": 9, "decay_steps": 9}
LOOSE = {**FLAT, "clip_norm": 1e9, "weight_decay": 0.0}
# Newton-Schulz of Jordan's Muon: five iterations of a quintic with these coefficients.
A, B, C = 3.4445, -4.7750, 2.0315
KINDS = pytest.mark.parametrize("kind", [AdamW, Muon])


def is_names(value):
    return isinstance(value, tuple)


def tree(seed, dtype="float32", scale=1.0):
    random = np.random.default_rng(seed)

    def leaf(names):
        value = scale * random.normal(size=[SIZES[name] for name in names])
        return jnp.asarray(value, dtype)

    return jax.tree.map(leaf, NAMES, is_leaf=is_names)


@functools.cache
def compiled(config):
    optimizer = config.build(NAMES, CONSTANT)
    return jax.jit(optimizer.init), jax.jit(optimizer.update)


def run(config, params, *grads, rate=0.1):
    """Parameters, last updates and state after updates with these gradients."""
    init, update = compiled(config)
    state = init(params)
    with single_device():
        for each in grads:
            updates, state = update(each, state, params, jnp.float32(rate))
            params = optax.apply_updates(params, updates)
    return params, updates, state


def orthogonal(x):
    """One matrix through the iteration, in NumPy's float64."""
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        s = x @ x.T
        x = A * x + (B * s + C * s @ s) @ x
    return x


@KINDS
@pytest.mark.parametrize("moments", ["float32", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_optimizer_state_stands_under_its_parameters_path(kind, moments, dtype):
    config = kind(**FLAT, moments=moments)
    init = config.build(NAMES, CONSTANT).init
    state = jax.eval_shape(init, tree(0, dtype))
    shapes = {path: leaf.shape for path, leaf in flatten(tree(0)).items()}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        names = [k.key for k in keys if isinstance(k, jax.tree_util.DictKey)]
        ends = {"/".join(names[i:]) for i in range(len(names))} & shapes.keys()
        assert leaf.ndim == 0 or [shapes[end] for end in ends] == [leaf.shape], keys


@KINDS
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_moments_are_never_narrower_than_float32(kind, dtype):
    with jax.enable_x64(dtype == "float64"):
        params, updates, state = run(kind(**FLAT), tree(0, dtype), tree(1, dtype))
        wide = "float64" if dtype == "float64" else "float32"
        assert {x.dtype.name for x in jax.tree.leaves(state) if x.ndim} == {wide}
        assert {x.dtype.name for x in jax.tree.leaves(updates)} == {wide}
        assert {x.dtype.name for x in jax.tree.leaves(params)} == {dtype}


@KINDS
def test_only_the_first_moment_may_be_bfloat16(kind):
    config = kind(**FLAT, moments="bfloat16")
    state = jax.eval_shape(config.build(NAMES, CONSTANT).init, tree(0))
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        if leaf.ndim:
            first = ".mu" in jax.tree_util.keystr(keys)
            assert leaf.dtype == (jnp.bfloat16 if first else jnp.float32)


def test_adamw_is_the_papers_formula_in_float64():
    with jax.enable_x64(True):
        config = AdamW(**{**LOOSE, "weight_decay": 0.5}, b1=0.8, b2=0.9)
        p, g1, g2 = (flatten(tree(i, "float64"))["embedding"] for i in range(3))
        params, *_ = run(config, *(tree(i, "float64") for i in range(3)), rate=0.25)
        m = v = 0.0
        x = np.asarray(p)
        for t, g in enumerate(map(np.asarray, (g1, g2)), start=1):
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
            root = np.sqrt(v / (1 - 0.9**t)) + 1e-8
            x = x - 0.25 * (m / (1 - 0.8**t) / root + 0.5 * x)
        np.testing.assert_allclose(params["embedding"], x, rtol=1e-14)


@pytest.mark.parametrize(
    ("path", "rows", "columns"),
    [
        ("mlp/w_up", 8, 16),
        ("mlp/w_down", 16, 8),
        ("attn/w_q", 8, 16),
        ("attn/w_o", 16, 8),
    ],
)
def test_muon_is_its_formula_layer_by_layer_in_float64(path, rows, columns):
    with jax.enable_x64(True):
        grads = tree(1, "float64")
        _, updates, _ = run(Muon(**LOOSE), tree(0, "float64"), grads, rate=1.0)
        for layer in range(2):
            g = np.asarray(flatten(grads)[f"layers/{path}"][layer])
            u = np.asarray(flatten(updates)[f"layers/{path}"][layer])
            # Nesterov's look-ahead on a first moment of 0.05 g, without its bias.
            look_ahead = 0.95 * 0.05 / (1 - 0.95**2) + 1
            x = look_ahead * g.reshape(rows, columns)
            x = x if rows < columns else x.T
            expected = -0.2 * np.sqrt(16) * orthogonal(x)
            u = u.reshape(rows, columns)
            np.testing.assert_allclose(
                u if rows < columns else u.T, expected, rtol=1e-10, atol=1e-12
            )


def test_muons_updates_are_as_large_as_adams_usual_ones():
    _, updates, _ = run(Muon(**LOOSE), tree(0), tree(1), rate=1.0)
    for name, update in flatten(updates["layers"]["attn"]).items():
        assert 0.12 < float(jnp.sqrt(jnp.mean(update**2))) < 0.25, name


def test_muon_gives_all_but_matrices_adams_update():
    _, muon, _ = run(Muon(**FLAT), tree(0), tree(1))
    _, adam, _ = run(AdamW(**FLAT), tree(0), tree(1))
    for path in ("embedding", "layers/mlp/b_up"):
        np.testing.assert_allclose(flatten(muon)[path], flatten(adam)[path], rtol=1e-6)


def test_each_expert_is_a_matrix_and_an_embedding_is_none():
    assert is_matrix(("layers", "experts", "embed", "mlp"))
    assert not is_matrix(("layers", "embed", "experts"))
    assert not is_matrix(("layers", "heads", "head_dim"))
    for names in (("embed", "vocab"), ("position", "embed"), ("layers", "embed")):
        assert not is_matrix(names)


@KINDS
def test_weight_decay_is_the_rate_times_the_parameter(kind):
    config = kind(**{**FLAT, "weight_decay": 0.5}, no_decay=("embedding",))
    zero = jax.tree.map(jnp.zeros_like, tree(0))
    _, updates, _ = run(config, tree(0), zero, rate=0.1)
    for path, update in flatten(updates).items():
        undecayed = path in ("embedding", "layers/mlp/b_up")
        expected = 0 if undecayed else -0.1 * 0.5 * flatten(tree(0))[path]
        np.testing.assert_allclose(update, expected, rtol=1e-6)


@KINDS
def test_frozen_parameters_keep_their_bits_and_do_not_affect_the_rest(kind):
    config = kind(**FLAT, freeze=("layers/attn/*",))
    params = tree(0)
    params["layers"]["attn"]["w_q"] = params["layers"]["attn"]["w_q"].at[0].set(-0.0)
    wild = tree(1)
    wild["layers"]["attn"] = jax.tree.map(
        lambda x: jnp.full_like(x, jnp.nan), wild["layers"]["attn"]
    )
    after, updates, _ = run(config, params, wild, wild)
    _, tame, _ = run(config, params, tree(1), tree(1))
    for path, leaf in flatten(after).items():
        same = leaf.tobytes() == flatten(params)[path].tobytes()
        assert same == path.startswith("layers/attn/"), path
    for path, update in flatten(updates).items():
        np.testing.assert_array_equal(update, flatten(tame)[path])


@KINDS
def test_gradients_above_the_norm_are_scaled_to_it(kind):
    config = kind(**{**FLAT, "clip_norm": 0.5})
    norm = float(optax.tree.norm(tree(1)))
    small = jax.tree.map(lambda g: g * (0.5 / norm), tree(1))
    # After clipping both have the same moments: only they tell the size of a gradient.
    large, small = (run(config, tree(0), g)[2] for g in (tree(1), small))
    for a, b in zip(jax.tree.leaves(large), jax.tree.leaves(small), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "spelling"),
    [(Muon, "fsdp=8"), (Muon, "fsdp=4,tensor=2"), (AdamW, "fsdp=4,tensor=2")],
)
def test_many_updates_on_a_mesh_equal_those_on_one_device(kind, spelling):
    placed = Layout.parse(spelling).on(jax.devices())

    def shard(value):
        shardings = jax.tree.map(
            lambda names: placed.sharding(names, "stored"), NAMES, is_leaf=is_names
        )
        return jax.device_put(value, shardings)

    with jax.enable_x64(True):
        trees = [tree(i, "float64") for i in range(4)]
        one, _, _ = run(kind(**FLAT), *trees)
        many, _, _ = run(kind(**FLAT), *map(shard, trees))
        for path, leaf in flatten(one).items():
            np.testing.assert_allclose(
                flatten(many)[path], leaf, rtol=1e-11, atol=1e-12, err_msg=path
            )


def rates(config, steps, decay_from=NEVER):
    """As a step computes them: traced."""
    schedule = jax.vmap(lambda step: config.schedule(step, jnp.int32(decay_from)))
    return np.array(schedule(jnp.arange(steps)))


@pytest.mark.parametrize("shape", ["cosine", "linear"])
@pytest.mark.parametrize("decay_from", [NEVER, 120, 40])
@pytest.mark.parametrize("stable", [0, 100, -1])
def test_a_schedule_never_jumps_and_never_starts_at_zero(shape, decay_from, stable):
    config = AdamW(1.0, 50, 200, stable, decay_shape=shape, final_lr=0.1)
    found = rates(config, 400, decay_from)
    assert found[0] > 0 and found.max() <= 1.0
    # The steepest that a warm-up of 50 or a cosine over 200 steps can be.
    assert np.abs(np.diff(found)).max() <= max(1 / 50, np.pi / 2 / 200) + 1e-6


def test_a_schedule_ends_where_it_says():
    for stable, decay_from in ((0, NEVER), (30, NEVER), (30, 20), (-1, 70)):
        config = AdamW(1.0, 10, 40, stable)
        ends = config.schedule.ends(decay_from)
        found = rates(config, ends + 50, decay_from)
        np.testing.assert_allclose(found[ends:], 0.1, rtol=1e-6)
        assert found[ends - 2] > 0.1
    assert AdamW(1.0, 10, 40, -1).schedule.ends(NEVER) is None


def test_a_configuration_names_its_optimizer():
    with pytest.raises(UserError, match="names no optimizer; write AdamW"):
        OptimConfig(peak_lr=6e-4, warmup_steps=2_000, decay_steps=60_000)
    config = AdamW(6e-4, 2_000, 60_000)
    assert pickle.loads(pickle.dumps(config)) == config
    assert type(dataclasses.replace(config, peak_lr=1e-3)) is AdamW


@dataclasses.dataclass(frozen=True)
class Experiment:
    optim: OptimConfig


@pytest.mark.parametrize(
    ("default", "flags", "expected"),
    [
        (AdamW(6e-4, 10, 20), ["--optim.b2", "0.9"], AdamW(3e-4, 10, 20, b2=0.9)),
        (Muon(6e-4, 10, 20), ["--optim.beta", "0.9"], Muon(3e-4, 10, 20, beta=0.9)),
    ],
)
def test_the_command_line_changes_any_field(default, flags, expected):
    flags = ["--optim.peak-lr", "3e-4", *flags, "--optim.freeze", "a/*", "b"]
    found = tyro.cli(Experiment, default=Experiment(default), args=flags)
    assert found.optim == dataclasses.replace(expected, freeze=("a/*", "b"))


@pytest.mark.parametrize(
    "fields",
    [
        {"peak_lr": float("nan")},
        {"clip_norm": 0.0},
        {"final_lr": 2.0},
        {"moments": "f8"},
        {"warmup_steps": -1},
        {"stable_steps": -2},
        {"weight_decay": -0.1},
        {"decay_shape": "square"},
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(fields):
    (name,) = fields
    with pytest.raises(ValueError, match=f"{name}="):
        AdamW(**{**FLAT, **fields})
