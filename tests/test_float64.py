"""A type that a precision names is the type of what is computed and kept."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxpar import evaluate, finetune, look, pretrain
from jaxpar.data.source import Text
from jaxpar.data.tokenizer import Bytes
from jaxpar.errors import UserError
from jaxpar.experiment import Finetune, Pretrain
from jaxpar.generate.answer import logits
from jaxpar.generate.answer import main as answer
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import TYPES, Precision
from jaxpar.run.directory import RunDir
from jaxpar.run.opening import open_run
from jaxpar.train.state import create
from jaxpar.tree import flatten

PROMPT = [1, 2, 3]


def experiment_in(kind, num_steps=2):
    return Pretrain(
        model=sizes.llama(
            vocab_size=259, n_layers=1, d_embed=16, n_heads=2, n_kv_heads=2, d_mlp=32,
            max_positions=32,
        ),
        data=Text("synthetic", tokenizer=Bytes(), seq_len=16, batch_size=8),
        optim=AdamW(peak_lr=1e-2, warmup_steps=1, decay_steps=9),
        # No gradients are summed in float16.
        precision=Precision(kind, kind, "float32" if kind == "float16" else kind),
        layout=Layout.parse("data=8"),
        num_steps=num_steps,
        eval_every=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run_in(tmp_path_factory):
    """Where a run in a type is, which is trained when it is first asked for."""
    made = {}

    def run(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind) / "run"
            assert pretrain.main(experiment_in(kind), run_dir=made[kind]) == 0
        return made[kind]

    return run


def types_in(run):
    """The floating-point types of a run's newest checkpoint: parameters, moments."""
    with contextlib.closing(RunDir(run).checkpoints()) as checkpoints:
        step = checkpoints.newest()
        shapes = [checkpoints.param_shapes(step), checkpoints._shapes(step, "rest")]
    found = [{str(leaf.dtype) for leaf in jax.tree.leaves(each)} for each in shapes]
    return found[0], found[1] - {"int32"}


def last_row(run, **wanted):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if wanted.items() <= r.items()][-1]


KINDS = [
    pytest.param(kind, marks=() if kind == "float64" else pytest.mark.slow)
    for kind in TYPES
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_saved_opened_and_resumed_in_its_type(kind, run_in):
    run = run_in(kind)
    moments = "float64" if kind == "float64" else "float32"
    assert types_in(run) == ({kind}, {moments})
    opened = evaluate.main(run, layout="data=8")
    trained = last_row(run, split="heldout")
    assert opened["step"] == trained["step"]
    assert abs(opened["nats_per_token"] - trained["nats_per_token"]) < 1e-12
    loss = last_row(run, step=1)["loss"]
    assert (float(np.float32(loss)) != loss) == (kind == "float64")
    found = answer(run, token_ids=PROMPT, layout="data=8")
    assert found["step"] == opened["step"]
    found = logits(run, [PROMPT] * 8, layout="data=8")
    assert found.dtype == moments
    assert pretrain.main(experiment_in(kind, num_steps=4), run_dir=run) == 0
    assert types_in(run)[0] == {kind} and last_row(run)["step"] == 4
    assert not jax.config.values["jax_enable_x64"]


def tuned_in(kind, source):
    same = experiment_in(kind)
    names = [f.name for f in dataclasses.fields(same) if f.name != "model"]
    return Finetune(start_from=str(source), **{n: getattr(same, n) for n in names})


@pytest.mark.parametrize("kind", KINDS)
def test_a_fine_tune_starts_from_a_run_in_its_type(kind, run_in, tmp_path):
    run = tmp_path / "tuned"
    assert finetune.main(tuned_in(kind, run_in(kind)), run_dir=run) == 0
    assert types_in(run)[0] == {kind}
    first = last_row(run, split="heldout", step=0)["nats_per_token"]
    learned = evaluate.main(run_in(kind), layout="data=8")["nats_per_token"]
    assert abs(first - learned) < 1e-12
    assert not jax.config.values["jax_enable_x64"]


def test_a_fine_tune_in_another_type_is_refused_with_the_source_s(run_in, tmp_path):
    tuned = tuned_in("float32", run_in("float64"))
    with pytest.raises(UserError, match="float64 there.*precision.params=float64, the"):
        finetune.main(tuned, run_dir=tmp_path)


@pytest.mark.parametrize("place", ["params", "compute", "reduce"])
def test_a_notebook_is_refused_float64_until_jax_may_compute_in_it(place, run_in):
    precision = Precision(**{place: "float64"})
    experiment = dataclasses.replace(experiment_in("float32"), precision=precision)
    placed = experiment.layout.on(jax.devices())
    with pytest.raises(UserError, match=f"{place}='float64'.*jax_enable_x64"):
        create(experiment.recipe(), placed, seed=0)
    with jax.enable_x64(True):
        params = create(experiment.recipe(), placed, seed=0).params
    kind = "float64" if place == "params" else "float32"
    assert {str(leaf.dtype) for leaf in flatten(params).values()} == {kind}


def test_a_notebook_is_refused_a_run_in_float64(run_in):
    run = run_in("float64")
    with pytest.raises(UserError, match="jax_enable_x64"):
        open_run(run, layout="data=8")
    with jax.enable_x64(True):
        assert open_run(run, layout="data=8").step


def test_a_table_counts_eight_bytes_of_a_number_in_float64():
    wide, usual = (look.show(experiment_in(kind)) for kind in ("float64", "float32"))
    assert wide.bytes == 2 * usual.bytes and wide.optimizer == 2 * usual.optimizer - 4
