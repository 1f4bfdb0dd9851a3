"""A pipeline computes what one layer after another does, and its bubble counts nothing.

pytest tests/pipeline
That its numbers are those of one device stands in tests/verify/test_proofs.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpar import pretrain
from jaxpar.cli import main
from jaxpar.data.source import Text
from jaxpar.errors import UserError
from jaxpar.experiment import Pretrain
from jaxpar.look import show
from jaxpar.metrics.flops import model_flops
from jaxpar.metrics.metrics_file import read_metrics
from jaxpar.models import sizes
from jaxpar.models.base import Aux, ModelConfig
from jaxpar.nn.embed import lookup
from jaxpar.nn.linear import dense
from jaxpar.nn.param import fan_in, normal, param
from jaxpar.nn.stack import scan, stacked
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision
from jaxpar.partition.sharding import constrain
from jaxpar.pipeline import stages
from jaxpar.pipeline.schedule import Schedule
from jaxpar.run.directory import RunDir
from jaxpar.train.gradients import make_gradients
from jaxpar.train.state import create
from jaxpar.verify.packed_rows import Packed

MODEL = sizes.llama(
    vocab_size=260, n_layers=4, d_embed=16, n_heads=2, n_kv_heads=2, d_mlp=32,
    max_positions=32,
)  # fmt: skip


def experiment(layout, model=MODEL, *, rows=16, seq_len=32, **fields):
    return Pretrain(
        model=model,
        data=Text("synthetic", seq_len=seq_len, batch_size=rows),
        optim=AdamW(peak_lr=1e-2, warmup_steps=1, decay_steps=8),
        layout=Layout.parse(layout),
        **{"num_steps": 4, **fields},
    )


def placed_on(run):
    return run.layout.on(jax.devices()[: run.layout.n_devices])


def batch_of(run):
    data, objective = run.data, run.objective
    windows = Packed(
        n_rows=data.batch_size, seq_len=data.seq_len, vocab_size=run.model.vocab_size
    )
    rows = [objective.row(windows[i]) for i in range(data.batch_size)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def gradients(run):
    """Of the summed loss, in float64, as NumPy."""
    run = dataclasses.replace(run, precision=Precision(*["float64"] * 3))
    with jax.enable_x64(True):
        recipe, placed = run.recipe(), placed_on(run)
        state = create(recipe, placed, seed=0)
        function = jax.jit(make_gradients(recipe, placed, **run.step_options))
        batch = jax.device_put(batch_of(run), placed.sharding(("batch", "seq")))
        grads, sums = function(state.params, batch, jnp.int32(0))
        return jax.device_get((grads, sums.loss))


def test_a_schedule_counts_its_ticks_and_its_bubble():
    schedule = Schedule(n_stages=4, n_groups=2)
    assert (schedule.n_microbatches, schedule.n_ticks) == (8, 11)
    assert schedule.bubble == 3 / 11


@pytest.mark.parametrize("layout, microbatches", [("stage=4", 4), ("stage=4", 12)])
def test_what_a_bubble_computes_counts_nothing(layout, microbatches, monkeypatch):
    run = experiment(layout, rows=24, microbatches=microbatches)
    expected = gradients(run)
    filled = []

    def other_rows(inputs):
        filled.append(True)
        return jnp.full_like(inputs[0], 1e4)

    def nothing_yet(inputs):
        filled.append(True)
        return jnp.full_like(inputs[0], jnp.nan)

    monkeypatch.setattr(stages, "_of_no_account", other_rows)
    monkeypatch.setattr(stages, "_nothing_yet", nothing_yet)
    found = gradients(run)
    assert filled
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11),
        found, expected,
    )  # fmt: skip


def test_stages_repeat_neither_embedding_nor_logits():
    model = sizes.llama(
        vocab_size=2_000, n_layers=4, d_embed=256, n_heads=4, n_kv_heads=4, d_mlp=512,
        max_positions=32,
    )  # fmt: skip

    def flops(layout, **fields):
        run = experiment(layout, model, **fields)
        recipe, batch = run.recipe(), batch_of(run)
        function = make_gradients(recipe, placed_on(run), **run.step_options)
        return model_flops(function, recipe.anatomy.shapes, batch, jnp.int32(0))

    one = flops("data=1")
    for layout, S, M in (("stage=4", 4, 8), ("data=2,stage=2", 2, 4)):
        found = flops(layout, microbatches=M) / one
        assert (M + S - 1) / M * 0.9 < found < 1.1 * (M + S - 1) / M


@pytest.mark.parametrize(
    "layout, fields, words",
    [
        ("stage=4", {"microbatches": 6}, "not divisible by the 4 stages.*4 and 8"),
        ("stage=2", {"rows": 7}, "batch_size=7 is not divisible by 2.*6 and 8"),
        (
            "stage=2",
            {"rows": 6, "microbatches": 4},
            "batch_size=6 is not divisible by 4.*4 and 8",
        ),
        (
            "stage=3",
            {},
            "the model's 4 layers; write stage=2 or stage=4 or model.n_layers=3 or 6",
        ),
        ("stage=4", {"exact": 8}, "splits sums over stage.*write --layout data=4"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(layout, fields, words):
    with pytest.raises(UserError, match=words):
        run = experiment(layout, **fields)
        run.recipe().abstract(run.layout)


def test_few_rows_have_as_many_microbatches_as_stages():
    layout = Layout.parse("stage=2,data=2")
    assert [layout.microbatches(1, rows) for rows in (4, 8, 12, 16)] == [2, 4, 2, 4]
    assert layout.microbatches(6, 12) == 6
    assert Layout.parse("data=4").microbatches(3, 12) == 3


def test_the_command_refuses_in_one_line(capsys):
    words = ["--layout", "stage=3", "--devices", "3", "--data.batch-size", "12"]
    assert main(["show", "experiments/quickstart.py", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "layers" in line and "3" in line


@dataclasses.dataclass(frozen=True)
class Own(ModelConfig):
    """A model whose stack is run as `how` says, which may be wrong."""

    vocab_size: int = 260
    max_positions: int = 32
    how: str = "none"

    def build(self, rngs):
        return OwnModel(self, rngs)


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.w = param(rngs, fan_in("embed"), embed=16, embed_=16)


class OwnModel(nnx.Module):
    def __init__(self, config, rngs):
        self.how = config.how
        self.embedding = param(rngs, normal(0.02), vocab=260, embed=16)
        self.unembedding = param(rngs, fan_in("embed"), embed=16, vocab=260)
        if self.how != "none":
            self.layers = stacked(lambda rngs: Layer(rngs), 8, rngs)

    def __call__(self, tokens, where, keys=None, cache=None):
        x = constrain(lookup(self.embedding, tokens), "batch", "seq", "embed")
        if self.how == "itself":
            w = self.layers.w[...]
            x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)
        elif self.how == "closed over":
            x, _ = scan(
                lambda block, x, layer, carried: (x + where.positions[..., None], None),
                self.layers, x,
            )  # fmt: skip
        elif self.how == "a table":  # Of positions, the same for all rows.
            table = jnp.ones((x.shape[1], 16), x.dtype)
            x, _ = scan(
                lambda block, x, layer, carried, t: (x + t[None], None),
                self.layers,
                x,
                table,
            )
        return x, Aux()

    def unembed(self, x):
        return dense("BTD,DV->BTV", x, self.unembedding)


def test_a_model_without_a_stack_has_no_stages():
    run = experiment("stage=2", Own())
    with pytest.raises(UserError, match="Own: layout stage=2.*nn.stack.stacked"):
        run.recipe().abstract(run.layout)


def test_a_stack_that_a_model_walks_along_itself_is_refused():
    with pytest.raises(UserError, match="of 1 parameters.*has run 0"):
        gradients(experiment("stage=2", Own(how="itself")))


def test_what_blocks_read_has_rows_that_can_travel():
    with pytest.raises(UserError, match=r"2 rows of x first; one has.*(32, 16)"):
        gradients(experiment("stage=8", Own(how="a table")))


def test_what_a_block_closes_over_cannot_travel():
    words = "sees the 1 rows of one microbatch, not all 2.*handed to nn.stack.scan"
    with pytest.raises(UserError, match=words):
        gradients(experiment("stage=8", Own(how="closed over")))


def test_what_a_block_refuses_itself_is_said_as_it_is():
    with pytest.raises(UserError, match="^Layout stage=2,ulysses=4: ulysses splits"):
        gradients(experiment("stage=2,ulysses=4"))


def test_show_says_the_bubble():
    table = show(experiment("stage=4"))
    assert "Pipeline: 4 stages, 8 microbatches in 11 ticks; in 27% of" in str(table)
    assert table.to_json()["bubble"] == 3 / 11
    assert show(experiment("data=4")).to_json()["bubble"] == 0.0


def losses_of(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return [row["loss"] for row in rows if "loss" in row and "split" not in row]


def params_of(folder):
    run = RunDir(folder)
    placed = Layout.parse("data=1").on(jax.devices()[:1])
    checkpoints = run.checkpoints(read_only=True)
    target = run.open().recipe().target(placed)
    return jax.device_get(checkpoints.restore(checkpoints.newest(), target)[0])


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_in_a_pipeline_and_out_of_it(tmp_path):
    run = experiment("data=4,stage=2")
    for name, stops in {"whole": [4], "stopped": [2, 4]}.items():
        for n in stops:
            step = dataclasses.replace(run, num_steps=n)
            assert pretrain.main(step, run_dir=tmp_path / name) == 0
    whole, stopped = (params_of(tmp_path / name) for name in ("whole", "stopped"))
    jax.tree.map(np.testing.assert_array_equal, stopped, whole)
    for n, layout in ((5, "data=8"), (6, "stage=4,data=2"), (7, "stage=2,fsdp=4")):
        moved = dataclasses.replace(run, num_steps=n, layout=Layout.parse(layout))
        assert pretrain.main(moved, run_dir=tmp_path / "stopped") == 0
        moved = dataclasses.replace(run, num_steps=n)
        assert pretrain.main(moved, run_dir=tmp_path / "whole") == 0
        found, expected = (losses_of(tmp_path / name) for name in ("stopped", "whole"))
        assert found == pytest.approx(expected, rel=1e-5)
