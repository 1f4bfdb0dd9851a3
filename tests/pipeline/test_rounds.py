"""A stage gathers its weights once a round, keeps none, and computes what it did.

pytest tests/pipeline/test_rounds.py
"""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.bench.program_text import OPERATION, computations
from jaxpar.errors import UserError
from jaxpar.models import sizes
from jaxpar.models.base import Aux, ModelConfig
from jaxpar.nn.embed import lookup
from jaxpar.nn.linear import dense
from jaxpar.nn.param import fan_in, normal, param
from jaxpar.nn.stack import scan, stacked
from jaxpar.partition import own_rows, sharding
from jaxpar.partition.sharding import constrain, gather
from jaxpar.pipeline import stages
from jaxpar.verify import assert_same
from tests.pipeline.test_stages import MODEL, compiled, experiment, gradients
from tests.verify.conftest import RUNS

LAYOUT = "fsdp=2,stage=2x2,tensor=2"


def by_round(layout, model, *, rows=16, **fields):
    return experiment(layout, model, rows=rows, fsdp_gathers="round", **fields)


def assert_alike(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
        found, expected,
    )  # fmt: skip


@pytest.mark.parametrize(
    "layout, remat, microbatches",
    [
        (LAYOUT, "none", 8),
        ("fsdp=4,stage=2x2", "full", 2),
        pytest.param("fsdp=2,stage=4x2", "dots", 8, marks=pytest.mark.slow),
        pytest.param("fsdp=4,stage=2x4", "full", 4, marks=pytest.mark.slow),
        pytest.param("fsdp=2,stage=2x2,ring=2", "none", 4, marks=pytest.mark.slow),
    ],
)
def test_every_gradient_is_that_of_gathering_at_each_tick(layout, remat, microbatches):
    model = dataclasses.replace(MODEL, n_layers=8, remat=remat)
    run = by_round(layout, model, rows=32, microbatches=microbatches)
    expected = gradients(dataclasses.replace(run, fsdp_gathers="microbatch"))
    assert_alike(gradients(run), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "form, layout",
    [
        ("gpt", "fsdp=4,stage=2x2"),
        ("llama", "fsdp=2,stage=2x2,tensor=2+sp"),
        ("dropless", "fsdp=2,stage=2x2,expert=2"),
        ("slots", "fsdp=4,stage=2x2"),
    ],
)
def test_gathering_once_a_round_is_proven(form, layout):
    assert_same(dataclasses.replace(RUNS[form], fsdp_gathers="round"), layout)


@dataclasses.dataclass(frozen=True)
class Shared(ModelConfig):
    """A model all of whose blocks read one more parameter, and return a count."""

    vocab_size: int = 260
    max_positions: int = 32

    def build(self, rngs):
        return SharedModel(rngs)


class SharedModel(nnx.Module):
    def __init__(self, rngs):
        self.embedding = param(rngs, normal(0.02), vocab=260, embed=16)
        self.unembedding = param(rngs, fan_in("embed"), embed=16, vocab=260)
        self.scale = param(rngs, normal(1.0), embed=16)
        self.layers = stacked(
            lambda rngs: nnx.Dict(
                w=param(rngs, fan_in("embed"), embed=16, embed_=16),
            ),
            4,
            rngs,
        )  # fmt: skip

    def __call__(self, tokens, where, keys=None, cache=None):
        x = constrain(lookup(self.embedding, tokens), "batch", "seq", "embed")
        scale, signs = gather(self.scale).astype(x.dtype), jnp.arange(4) % 2 * 2 - 1

        def run(block, x, layer, carried):
            y = dense("BTD,DE->BTE", x, block.w)
            n_small = jnp.sum(jnp.abs(y) < 1, (1, 2), dtype=jnp.int32)
            return x + signs[layer] * jnp.tanh(y) * scale[None, None], n_small

        return scan(run, self.layers, x)[0], Aux()

    def unembed(self, x):
        return dense("BTD,DV->BTV", x, self.unembedding)


def test_what_all_blocks_read_has_its_gradient():
    run = by_round("fsdp=2,stage=2x2", Shared(), microbatches=4)
    expected = gradients(dataclasses.replace(run, fsdp_gathers="microbatch"))
    assert np.max(np.abs(expected[0]["scale"])) > 1e-3
    assert_alike(gradients(run), expected)


def test_what_a_bubble_computes_counts_nothing(monkeypatch):
    run = by_round("fsdp=2,stage=4x2", dataclasses.replace(MODEL, n_layers=8))
    expected = gradients(run)
    monkeypatch.setattr(
        stages, "_of_no_account", lambda inputs: jnp.full_like(inputs[0], 1e4)
    )
    monkeypatch.setattr(
        stages, "_nothing_yet", lambda inputs: jnp.full_like(inputs[0], jnp.nan)
    )
    assert_alike(gradients(run), expected)


@pytest.mark.parametrize("gathers, M", [("round", 4), ("round", 8), ("microbatch", 4)])
def test_a_device_gathers_as_often_as_it_has_rounds(gathers, M, monkeypatch):
    """Counted where it runs: a conditional's branches are in the program anyway."""
    counts = collections.Counter()

    def counted(name, collective):
        def run(x, names, *rest):
            y = collective(x, names, *rest)
            if names[-1] != "mlp":
                return y  # Two matrices of the MLP stand for all.

            def count(_):
                counts[name] += 1
                return np.float32(0)

            # What nothing reads is not gathered either.
            zero = jax.ShapeDtypeStruct((), jnp.float32)
            zero = jax.pure_callback(count, zero, y.ravel()[0].astype(jnp.float32))
            return y + zero.astype(y.dtype)

        return run

    for room in (own_rows, sharding):
        for name in ("gather_pieces", "scatter_sum"):
            monkeypatch.setattr(room, name, counted(name, getattr(room, name)))
    gradients(experiment("fsdp=2,stage=2x2", microbatches=M, fsdp_gathers=gathers))
    n_rounds, n_ticks, n_devices = 2 * M // 2, 2 * M + 1, 4
    # The last round's weights are still there when the backward pass begins.
    forth, back = (n_rounds, n_rounds - 1) if gathers == "round" else (n_ticks,) * 2
    assert counts == {
        "gather_pieces": 2 * n_devices * (forth + back),
        "scatter_sum": 2 * n_devices * forth,
    }


def out_of_order(program):
    """What sends something in a tick and neither leads to a gathering nor needs it.

    For each loop that gathers in a conditional whose token it reads.
    """
    bodies = computations(program)

    @functools.cache
    def sends(name):
        return any(map(sends_here, bodies.get(name, ())))

    def sends_here(line):
        callees = re.findall(r"%([\w.\-]+)", line.partition("), ")[2])
        return OPERATION.search(line) or any(map(sends, callees))

    def reached(start, edges):
        seen, todo = set(), [start]
        while todo:
            seen.add(name := todo.pop())
            todo += edges[name] - seen
        return seen

    for lines in bodies.values():
        defined = {re.search(r"%?([\w.\-]+) = ", x)[1]: x for x in lines if " = " in x}
        needs, needed = collections.defaultdict(set), collections.defaultdict(set)
        for name, line in defined.items():
            used = {*re.findall(r"%([\w.\-]+)", line)} & {*defined} - {name}
            needs[name] |= used
            for other in used:
                needed[other].add(name)
        for name, line in defined.items():
            if re.search(r"pred\[\].*\) conditional\(", line) and sends_here(line):
                ordered = reached(name, needs) | reached(name, needed)
                others = {*filter(lambda x: sends_here(defined[x]), defined)}
                yield others - ordered


@pytest.mark.parametrize(
    "layout, model",
    [
        ("fsdp=2,stage=2x2,tensor=2+sp", MODEL),
        pytest.param("fsdp=2,stage=2x2,ring=2", MODEL, marks=pytest.mark.slow),
        pytest.param(
            "fsdp=2,stage=2x2,tensor=2+sp",
            dataclasses.replace(MODEL, n_layers=8, remat="full"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "fsdp=2,stage=2x2,expert=2",
            RUNS["dropless"].model,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_a_tick_sends_waits_until_its_stage_has_gathered(layout, model):
    """Devices that begin collectives in another order wait for each other for ever."""
    program = compiled(
        layout, model=model, rows=16, microbatches=4, fsdp_gathers="round"
    )
    assert [*out_of_order(program.as_text())] == [set(), set()]  # Of both passes.


@pytest.mark.parametrize("remat", ["none", "full"])
def test_no_gathered_weights_are_kept_between_the_passes(remat):
    """Those of one chunk and their gradients are all that a step needs more."""
    model = sizes.llama(
        vocab_size=260, n_layers=8, d_embed=128, n_heads=2, n_kv_heads=2, d_mlp=512,
        max_positions=32,
    )  # fmt: skip
    model = dataclasses.replace(model, remat=remat)
    temporary = {
        how: compiled(
            "fsdp=2,stage=2x2", model=model, rows=32, seq_len=8, microbatches=16,
            fsdp_gathers=how,
        ).memory_analysis().temp_size_in_bytes
        for how in ("microbatch", "round")
    }  # fmt: skip
    chunk = 2 * 4 * (4 * 128 * 128 + 3 * 128 * 512)  # Two layers, in bytes.
    assert temporary["round"] - temporary["microbatch"] < 5 * chunk


def test_a_layout_without_rounds_is_refused():
    for layout in ("fsdp=4,stage=2", "fsdp=8"):
        with pytest.raises(UserError, match="fsdp_gathers=round: .* has no rounds"):
            experiment(layout, fsdp_gathers="round")
    # Nothing is gathered there at all.
    experiment("data=8", fsdp_gathers="round")
