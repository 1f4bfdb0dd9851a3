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

from experiments.bench.program_text import collectives
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
from jaxpar.pipeline.ticks import Schedule, microbatches
from jaxpar.run.directory import RunDir
from jaxpar.train.gradients import make_gradients
from jaxpar.train.state import create
from jaxpar.train.step import make_train_step
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
    circular = schedule._replace(n_rounds=2)
    assert (circular.n_microbatches, circular.n_ticks) == (8, 19)
    assert circular.bubble == 3 / 19


@pytest.mark.parametrize("n_rounds", [1, 2, 3])
def test_what_a_stage_sends_is_needed_by_the_next_one_a_tick_later(n_rounds):
    schedule, S = Schedule(4, 3, n_rounds), 4

    def work(tick, stage):
        """The microbatch, and the number of the chunk of layers."""
        turn = tick - stage
        if not 0 <= turn < schedule.n_turns:
            return None
        chunk = schedule.round_of(turn) * S + stage
        return schedule.microbatch_of(turn), chunk

    done = [work(t, s) for t in range(schedule.n_ticks) for s in range(S)]
    done = [each for each in done if each]
    assert sorted(done) == [(m, c) for m in range(12) for c in range(S * n_rounds)]
    for t in range(schedule.n_ticks):
        for s in range(S):
            if (now := work(t, s)) and now[1] < S * n_rounds - 1:
                assert work(t + 1, (s + 1) % S) == (now[0], now[1] + 1)


BUBBLES = [("stage=4", 4), ("stage=4", 12), ("stage=2x2", 2), ("stage=2x2", 6)]


@pytest.mark.parametrize("layout, microbatches", BUBBLES)
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
    for layout, S, M in (
        ("stage=4", 4, 8), ("data=2,stage=2", 2, 4), ("stage=2x2", 2, 4)
    ):  # fmt: skip
        turns = M * Layout.parse(layout).n_rounds
        found = flops(layout, microbatches=M) / one
        assert (turns + S - 1) / turns * 0.9 < found < 1.1 * (turns + S - 1) / turns


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
        ("stage=2x3", {}, "4 layers; write stage=2x2 or stage=2 or stage=4 or model.n"),
        ("stage=2x3", {}, "or model.n_layers=6"),
        ("stage=2x2", {"microbatches": 3}, "not divisible by the 2 stages.*2 and 4"),
        ("stage=4", {"exact": 8}, "splits sums over stage.*write --layout data=4"),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would(layout, fields, words):
    with pytest.raises(UserError, match=words):
        run = experiment(layout, **fields)
        run.recipe().abstract(run.layout)


def test_few_rows_have_as_many_microbatches_as_stages():
    layout = Layout.parse("stage=2,data=2")
    assert [microbatches(layout, 1, rows) for rows in (4, 8, 12, 16)] == [2, 4, 2, 4]
    assert microbatches(layout, 6, 12) == 6
    assert microbatches(Layout.parse("data=4"), 3, 12) == 3


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


def test_a_stack_that_rounds_do_not_divide_is_refused():
    run = experiment("stage=2x3", Own(how="closed over"))
    words = "axis 'layers' of size 8 is not divisible by 6.*size is 6 or 12"
    with pytest.raises(UserError, match=words):
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
    table = show(experiment("stage=2x2"))
    assert "2 stages of 2 rounds, 4 microbatches in 9 ticks; in 11% of" in str(table)
    assert table.to_json()["bubble"] == 1 / 9
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


def compiled(layout, **fields):
    """The program of a training step."""
    run = experiment(layout, **fields)
    recipe, placed = run.recipe(), placed_on(run)
    batch = jax.device_put(batch_of(run), placed.sharding(("batch", "seq")))
    step = make_train_step(recipe, placed, **run.step_options)
    return step.lower(recipe.target(placed), batch).compile()


def test_rounds_send_more_activations_and_nothing_else():
    """Above all no weights: each stage holds those of all its rounds."""
    sent, permuted = {}, {}
    for layout in ("stage=2,data=2", "stage=2x2,data=2"):
        sizes = Layout.parse(layout).sizes
        found = collectives(compiled(layout, microbatches=4).as_text(), sizes)
        permuted[layout] = [x for x in found if x.kind == "collective-permute"]
        others = (x for x in found if x.kind != "collective-permute")
        sent[layout] = sorted(
            (x.kind, x.axes, x.dtype, x.sent, x.times) for x in others
        )
    assert sent["stage=2,data=2"] == sent["stage=2x2,data=2"]
    # Places of tokens, and the gradients of what is outside the stack.
    assert {
        (kind, dtype) for kind, axes, dtype, *_ in sent[layout] if "stage" in axes
    } == {("all-gather", "s32"), ("all-reduce", "f32")}
    activations = 2 * 32 * 16 * 4  # 2 rows of a microbatch, in float32.
    for found in permuted.values():
        assert {(x.axes, x.dtype, x.sent) for x in found} == {
            (("stage",), "f32", activations)
        }
    # In each tick the outputs, and in those of the first round the ring; at the end
    # the ring once more. A conditional counts as if it were always taken.
    for layout, n_ticks in {"stage=2,data=2": 5, "stage=2x2,data=2": 9}.items():
        assert sum(x.times for x in permuted[layout]) == 2 * (2 * n_ticks + 1)


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_rounds_keep_no_copies_of_weights(remat):
    """In one tick a stage uses some of its weights: which ones, depends on the tick."""
    model = dataclasses.replace(
        sizes.llama(
            vocab_size=260, n_layers=4, d_embed=128, n_heads=2, n_kv_heads=2, d_mlp=512,
            max_positions=32,
        ),
        remat=remat,
    )  # fmt: skip
    temporary = {}
    for layout in ("stage=2", "stage=2x2"):
        program = compiled(layout, model=model, rows=16, seq_len=8, microbatches=8)
        temporary[layout] = program.memory_analysis().temp_size_in_bytes
    assert temporary["stage=2x2"] < 1.1 * temporary["stage=2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout, others",
    [
        ("stage=2,data=4", ("data=8", "stage=4,data=2", "stage=2,fsdp=4")),
        ("stage=2x2,data=2", ("data=4", "stage=2x2,fsdp=2", "stage=4,data=2")),
    ],
)
def test_a_run_that_is_stopped_goes_on_in_a_pipeline_and_out_of_it(
    layout, others, tmp_path
):
    run = experiment(layout)
    for name, stops in {"whole": [4], "stopped": [2, 4]}.items():
        for n in stops:
            step = dataclasses.replace(run, num_steps=n)
            assert pretrain.main(step, run_dir=tmp_path / name) == 0
    whole, stopped = (params_of(tmp_path / name) for name in ("whole", "stopped"))
    jax.tree.map(np.testing.assert_array_equal, stopped, whole)
    for n, layout in enumerate(others, 5):
        moved = dataclasses.replace(run, num_steps=n, layout=Layout.parse(layout))
        assert pretrain.main(moved, run_dir=tmp_path / "stopped") == 0
        moved = dataclasses.replace(run, num_steps=n)
        assert pretrain.main(moved, run_dir=tmp_path / "whole") == 0
        found, expected = (losses_of(tmp_path / name) for name in ("stopped", "whole"))
        assert found == pytest.approx(expected, rel=1e-5)
