"""A run whose devices disagree ends before it saves that.

pytest tests/run/test_replica_check.py
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxpar import pretrain
from jaxpar.data.source import Text
from jaxpar.errors import ReplicasDiffer, exit_status
from jaxpar.experiment import Pretrain
from jaxpar.guard import replicas
from jaxpar.metrics.metrics_file import read_metrics
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.run import fitting
from jaxpar.train.loop import History
from jaxpar.train.replica_check import CheckReplicas
from jaxpar.train.state import TrainState
from tests.guard.test_replicas import add_half, altered, with_leaf

RUN = Pretrain(
    model=sizes.llama(
        vocab_size=260, n_layers=1, d_embed=16, n_heads=2, n_kv_heads=2, d_mlp=32,
        max_positions=64,
    ),
    data=Text("synthetic", seq_len=64, batch_size=8),
    optim=AdamW(peak_lr=1e-2, warmup_steps=2, decay_steps=8),
    num_steps=8,
    layout=Layout.parse("data=8"),
    eval_every=8,
    save_every=4,
)  # fmt: skip


def state_of(device=None):
    """A small state; one copy of its only moment is another on this device."""
    mesh = Layout.parse("data=8").on(jax.devices()).mesh
    sharding = NamedSharding(mesh, PartitionSpec())
    step, moment = (jax.device_put(x, sharding) for x in (jnp.int32(0), jnp.ones(4)))
    if device is not None:
        moment = altered(moment, device, add_half)
    return TrainState(step, {"w": step}, ({"mu": moment},), step)


def test_copies_are_compared_on_schedule():
    check, history = CheckReplicas(every=5), History()
    assert [s for s in range(12) if check.due(s, history)] == [5, 10]


def test_a_run_whose_copies_differ_ends_with_a_status_of_its_own():
    check = CheckReplicas(every=5)
    check.run(5, state_of(), History())
    with pytest.raises(
        ReplicasDiffer, match="^At step 7 .*, so it is not saved. "
    ) as raised:
        check.require_equal(7, state_of(device=3))
    message = str(raised.value)
    assert "device cpu:3 of process 0" in message
    assert "other bits of opt_state/0/mu than most" in message
    assert exit_status(raised.value) == 44


def test_a_step_is_looked_at_once_and_never_where_that_is_asked(monkeypatch):
    calls = []
    monkeypatch.setattr(replicas, "find_differences", lambda state: calls.append(1))
    check = CheckReplicas(every=5)
    check.run(5, state_of(), History())
    check.require_equal(5, state_of())
    assert len(calls) == 1
    check.require_equal(6, state_of())
    assert len(calls) == 2
    never = CheckReplicas(every=0)
    assert not any(never.due(step, History()) for step in range(12))
    never.require_equal(7, state_of(device=3))
    assert len(calls) == 2


def losses(run):
    rows = read_metrics(run / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


@pytest.mark.slow
@pytest.mark.parametrize(("every", "found_at"), [(3, 6), (500, 8)])
def test_a_device_that_is_perturbed_ends_the_run_and_a_restart_is_clean(
    tmp_path, monkeypatch, every, found_at
):
    whole, struck = tmp_path / "whole", tmp_path / "struck"
    assert pretrain.main(RUN, run_dir=whole) == 0
    make = fitting.make_train_step

    def make_striking(*args, **options):
        train_step = make(*args, **options)

        def step(state, batch):
            if int(state.step) == 5:
                state = with_leaf(state, "norm/scale", 3, add_half)
            return train_step(state, batch)

        return step

    with monkeypatch.context() as patched:
        patched.setattr(fitting, "make_train_step", make_striking)
        checked = dataclasses.replace(RUN, check_replicas=every)
        with pytest.raises(ReplicasDiffer, match=f"^At step {found_at} device cpu:3 "):
            pretrain.main(checked, run_dir=struck)
    # Step 4 was saved before, and is what the run goes on from.
    assert pretrain.main(RUN, run_dir=struck) == 0
    assert losses(struck) == losses(whole)
