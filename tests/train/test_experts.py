"""A step of a mixture: raw gradients, moved biases, metrics, checkpoints, refusals.

pytest tests/train/test_experts.py
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxpar import pretrain
from jaxpar.cli import main
from jaxpar.data.loader import eval_batches
from jaxpar.errors import UserError
from jaxpar.experts.router import Report
from jaxpar.models.base import Aux
from jaxpar.partition.layout import Layout
from jaxpar.partition.sharding import single_device
from jaxpar.train.balance import with_moved_biases
from jaxpar.train.gradients import make_gradients
from jaxpar.train.objective import CausalLM, Sums, with_reports
from jaxpar.train.state import create
from jaxpar.train.step import make_train_step
from jaxpar.tree import flatten
from jaxpar.verify import Reference, verify
from tests.verify.conftest import mixture, run_of

RUN = run_of(mixture(2), batch_size=16, seq_len=16, microbatches=2)


@pytest.fixture(scope="module")
def reference():
    return Reference(RUN)


@pytest.mark.parametrize("layout", ["data=2,expert=2", "expert=4"])
def test_raw_gradients_and_their_norm_are_those_of_one_device(layout, reference):
    computed = reference.on(Layout.parse(layout))
    (found, _), (want, _) = computed.gradients, reference.one.gradients
    for path, one in flatten(want).items():
        many, one = np.asarray(flatten(found)[path]), np.asarray(one)
        if path.endswith("router_bias"):
            assert not many.any() and not one.any()
            continue
        ratio = np.vdot(many, one) / np.vdot(one, one)
        assert ratio == pytest.approx(1.0, abs=1e-12), path
    with jax.enable_x64(True):
        norms = [float(optax.tree.norm(grads)) for grads in (found, want)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-12)


def stepped(layout, run=RUN, microbatches=2, seed=0):
    placed = Layout.parse(layout).on(jax.devices()[: Layout.parse(layout).n_devices])
    recipe = run.recipe()
    step = make_train_step(recipe, placed, microbatches=microbatches, seed=seed)
    state = create(recipe, placed, seed=seed)
    rows = Reference(run).windows
    (batch,) = eval_batches(
        rows, run.objective.row, batch_size=len(rows), placed=placed
    )
    return step(state, batch)


def test_biases_move_towards_the_mean_by_the_whole_steps_counts():
    state, metrics = stepped("data=1")
    bias = np.asarray(flatten(state.params)["layers/mlp/router_bias"])
    assert set(np.unique(np.round(bias, 6))) <= {np.float32(-0.01), 0, np.float32(0.01)}
    assert bias.any()
    for layout in ("data=2,expert=2", "expert=2,tensor=2"):
        other, _ = stepped(layout)
        moved = flatten(other.params)["layers/mlp/router_bias"]
        np.testing.assert_array_equal(bias, moved)
    load = np.asarray(metrics["router_load"])
    assert load.sum() == pytest.approx(8) and load.shape == (8,)
    assert float(metrics["router_dropped"]) == 0
    assert float(metrics["router_load_max"]) >= load.max() - 1e-6
    assert 0 < float(metrics["router_entropy"]) < np.log(8)


def test_a_bound_counts_what_overflows():
    experts = dataclasses.replace(RUN.model.experts, buffer_factor=0.2)
    model = dataclasses.replace(RUN.model, experts=experts)
    _, metrics = stepped("expert=4", dataclasses.replace(RUN, model=model))
    assert 0 < float(metrics["router_dropped"]) < 0.8


def test_verify_refuses_a_bound():
    experts = dataclasses.replace(RUN.model.experts, buffer_factor=0.2)
    model = dataclasses.replace(RUN.model, experts=experts)
    with pytest.raises(UserError, match="buffer_factor=0.2.*buffer-factor 0"):
        verify(dataclasses.replace(RUN, model=model), "expert=2")


@dataclasses.dataclass(frozen=True)
class WithoutReports(CausalLM):
    def __call__(self, model, batch, keys):
        sums = super().__call__(model, batch, None)
        return Sums(sums.loss, sums.weight, {})


def test_an_objective_that_leaves_the_routers_losses_out_is_refused():
    run = dataclasses.replace(RUN, objective=WithoutReports())
    placed = Layout.parse("data=1").on(jax.devices()[:1])
    gradients = make_gradients(run.recipe(), placed)
    shapes = run.recipe().anatomy.shapes
    row = run.objective.row(Reference(run).windows[0])
    batch = {k: jax.ShapeDtypeStruct((4, *v.shape), v.dtype) for k, v in row.items()}
    with pytest.raises(UserError, match="WithoutReports.*with_reports"):
        jax.eval_shape(gradients, shapes, batch, np.int32(0))


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("--layout", "expert=3", "--data.batch-size", "9"), "'experts' of size 8"),
        (
            ("--layout", "expert=2", "--model.experts", "noexperts"),
            "the model has none",
        ),
        (("--layout", "expert=0"), "no positive size"),
    ],
)
def test_bad_requests_get_one_line_and_status_2(arguments, says, capsys):
    assert main(["show", "experiments/moe.py", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert says in said and "\n" not in said


@pytest.mark.slow
def test_a_mixture_stops_and_resumes_on_another_layout(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = dataclasses.replace(RUN.model, vocab_size=260)
    run = dataclasses.replace(
        RUN, model=model, num_steps=4, save_every=2, eval_every=4, log_every=1
    )
    whole = dataclasses.replace(run, layout=Layout.parse("data=2,expert=4"))
    assert pretrain.main(whole, run_dir="whole") == 0
    assert pretrain.main(dataclasses.replace(whole, num_steps=2), run_dir="cut") == 0
    assert pretrain.main(whole, run_dir="cut") == 0

    def rows(name):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return {r["step"]: r for r in found if "split" not in r}

    names = ("loss", "grad_norm", "router_load", "router_entropy", "router_loss")
    for step, row in rows("whole").items():
        assert {k: row[k] for k in names} == {k: rows("cut")[step][k] for k in names}
    other = dataclasses.replace(run, layout=Layout.parse("fsdp=8"), num_steps=6)
    assert pretrain.main(other, run_dir="cut") == 0
    assert "Resuming" in capsys.readouterr().out


def test_a_bias_rises_where_there_were_fewer_choices_than_the_mean():
    load = jnp.array([[5, 1, 0, 2], [3, 3, 3, 3]])
    updates = {"layers": {"mlp": {"router_bias": jnp.ones((2, 4)), "w": jnp.ones(3)}}}
    reports, rates = {"layers/mlp": {"load": load}}, {"layers/mlp/router_bias": 0.5}
    with single_device():
        moved = with_moved_biases(updates, reports, rates)["layers"]["mlp"]
    want = [[-0.5, 0.5, 0.5, 0.0], [0.0] * 4]
    np.testing.assert_array_equal(moved["router_bias"], want)
    np.testing.assert_array_equal(moved["w"], np.ones(3))


def test_a_routers_losses_weigh_what_their_rows_do_and_padding_nothing():
    rows = jnp.arange(1.0, 4.0)
    whole = jnp.array([7, 8, 9])
    report = Report(
        loss=jnp.stack([rows, 2 * rows]), balance=jnp.ones((2, 3)),
        tokens=jnp.stack([whole, whole]), entropy=jnp.ones((2, 3)),
        dropped=jnp.stack([whole, whole]), load=jnp.ones((2, 3, 4), jnp.int32),
    )  # fmt: skip
    weights = jnp.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    sums = Sums(jnp.float32(10), jnp.float32(3), {})
    with single_device():
        found = with_reports(sums, Aux(reports={"layers/mlp": report}), weights)
    # Rows 1 and 2 weigh 2 and 1; the third one pads the batch.
    assert float(found.loss) == 10 + (2 * 1 + 1 * 2) + (2 * 2 + 1 * 4)
    assert float(found.metrics["router_balance"]) == 3
    counts = found.reports["layers/mlp"]
    np.testing.assert_array_equal(counts["tokens"], [15, 15])
    np.testing.assert_array_equal(counts["dropped"], [15, 15])
    np.testing.assert_array_equal(counts["load"], np.full((2, 4), 2))
