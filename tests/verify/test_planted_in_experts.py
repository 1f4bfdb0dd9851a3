"""Bugs in a mixture of experts are found, and their place is named.

pytest tests/verify/test_planted_in_experts.py
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxpar.experts import block
from jaxpar.partition import own_rows
from jaxpar.partition.sharding import current_context
from jaxpar.train import gradients
from jaxpar.verify import Reference
from jaxpar.verify.parts import PARTS
from jaxpar.verify.prove import prove
from tests.verify.conftest import before_bugs, mixture, run_of

OF_ROUTERS = [p for p in PARTS if p.kind in ("router", "derivative", "bias")]
RUN = run_of(mixture(2), batch_size=16, seq_len=16, microbatches=2)


@pytest.fixture(scope="module")
def mixed():
    return before_bugs(RUN, (*PARTS[:3], *OF_ROUTERS))


def with_experts_in_another_order(x, sizes, ws, *more):
    """Where devices have their own experts, each takes the next one's weights."""
    layout = current_context().layout
    if layout is not None and "expert" in layout.sizes:
        ws = [jnp.roll(w, 1, axis=0) for w in ws]
    return EXPERT(x, sizes, ws, *more)


def without_other_experts_devices(grad, names):
    """The router's gradient is not added up over the devices of experts."""
    context = current_context()
    if "experts_" not in names or "expert" not in context.manual:
        return REDUCE(grad, names)
    manual = tuple(axis for axis in context.manual if axis != "expert")
    with own_rows.enter(dataclasses.replace(context, manual=manual)):
        return REDUCE(grad, names)


def without_other_pieces(f, *args, **axes):
    """What a token's weights get from all but the first piece of the hidden layer."""

    @jax.custom_vjp
    def door(gates):
        return gates

    def backward(_, grad):
        return (grad * (jax.lax.axis_index("tensor") == 0),)

    door.defvjp(lambda gates: (gates, None), backward)

    def inside(together, x, experts, gates, *more):
        return f(together, x, experts, door(gates), *more)

    layout = current_context().layout
    is_split = layout is not None and "tensor" in layout.sizes
    return LOCAL(inside if is_split else f, *args, **axes)


def with_losses_that_stop(*args):
    """The routers' losses are in the loss, and not in its gradient."""
    found = REPORT(*args)
    return found._replace(loss=jax.lax.stop_gradient(found.loss))


def with_counts_of_one_device(sums):
    """Biases move by what a device has counted itself."""
    return OVER_DEVICES(sums)._replace(reports=sums.reports)


EXPERT, LOCAL, REPORT = block._expert, block.local, block.report
REDUCE, OVER_DEVICES = own_rows.reduce_once, gradients._over_devices
PLANTED = {
    "experts permuted": (
        (block, "_expert", with_experts_in_another_order),
        "data=2,expert=2",
        ("forward", "layers/moe/out", 0, "expert"),
    ),
    "a router gradient not added up over expert": (
        (own_rows, "reduce_once", without_other_experts_devices),
        "data=2,expert=2",
        ("backward", "layers/mlp/w_router", 1, "expert"),
    ),
    "a router gradient of one piece of the hidden layer": (
        (block, "local", without_other_pieces),
        "data=2,tensor=2",
        ("backward", "layers/mlp/w_router", 1, "tensor"),
    ),
    "a balance loss that never reaches the gradient": (
        (block, "report", with_losses_that_stop),
        "data=2",
        ("backward", "layers/mlp/w_router", 1, "data"),
    ),
    "a bias moved by one shard's counts": (
        (gradients, "_over_devices", with_counts_of_one_device),
        "data=2",
        ("forward", "layers/mlp/entropy", 0, "data"),
    ),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_found_and_located(bug, mixed, monkeypatch):
    (place, name, wrong), layout, expected = PLANTED[bug]
    monkeypatch.setattr(place, name, wrong)
    proof = prove(mixed, layout)
    assert not proof.passed
    assert proof.first is not None
    first = proof.first
    assert (first.where, first.name, first.layer, first.axis) == expected
    if first.where == "backward":
        right = {leaf.kind for leaf in proof.leaves if leaf.passed}
        assert {"init", "loss", "router", "bias"} <= right
    if bug.startswith("a bias"):
        assert {leaf.kind for leaf in proof.leaves if not leaf.passed} >= {"bias"}


def test_a_loss_that_reaches_no_gradient_on_one_device_either_is_found(monkeypatch):
    monkeypatch.setattr(block, "report", with_losses_that_stop)
    proof = prove(Reference(RUN, parts=(*PARTS[:3], *OF_ROUTERS)), "data=2")
    failed = {(leaf.kind, leaf.path) for leaf in proof.leaves if not leaf.passed}
    assert failed == {("derivative", "layers/mlp/w_router")}
    assert proof.first is not None and proof.first.where == "backward"
