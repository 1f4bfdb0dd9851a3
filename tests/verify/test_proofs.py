"""Every layout computes what one device does.

pytest tests/verify/test_proofs.py -k "gpt and fsdp=8"
"""

import jax
import pytest

from jaxpar.partition.layout import Layout
from jaxpar.verify import Reference, assert_same
from jaxpar.verify.parts import PARTS
from jaxpar.verify.prove import prove
from tests.outside.own_model import BagConfig, experiment
from tests.verify.conftest import GPT, USUAL, cases, run_of

LAYOUTS = (
    "data=8",
    "replica=2,data=4",
    "zero1=8",
    "fsdp=8",
    "tensor=8",
    "data=4,tensor=2",
    "data=4,tensor=2+sp",
    "replica=2,fsdp=2,tensor=2",
    "data=2,context=4",
    "data=2,ring=4",
    "data=2,ulysses=4",
    "fsdp=2,context=2,tensor=2",
    "fsdp=2,ring=2,tensor=2+sp",
    "zero1=2,ulysses=2,tensor=2",
    "stage=4,data=2",
    "stage=4,zero1=2",
    "stage=2,fsdp=4",
    "stage=2,data=2,tensor=2+sp",
    "stage=2,ring=2,tensor=2",
    "stage=2,ulysses=4",
    "stage=2x2,data=4",
    "stage=4x2,tensor=2",
    "stage=2x2,ring=2,tensor=2",
)
# The others run with `pytest -m slow tests/verify`.
EVERYDAY = {
    ("gpt", "tensor=8"),
    ("gpt", "fsdp=2,ring=2,tensor=2+sp"),
    ("llama", "zero1=8"),
    ("llama", "data=2,ulysses=4"),
    ("gpt", "stage=2,data=2,tensor=2+sp"),
    ("llama", "stage=2x2,data=4"),
}
LAYOUTS_OF_ROWS = (
    "data=8",
    pytest.param("data=2,ring=4", marks=pytest.mark.slow),
    pytest.param("data=2,context=4", marks=pytest.mark.slow),
    pytest.param("data=2,ulysses=4", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("form, layout", cases(("gpt", "llama"), LAYOUTS, EVERYDAY))
def test_a_layout_computes_what_one_device_does(form, layout, reference):
    proof = prove(reference, layout)
    assert proof.passed, f"\n{proof}"
    assert {leaf.kind for leaf in proof.leaves} == USUAL


@pytest.mark.parametrize("form", ["gpt"])
def test_the_gradient_of_a_key_bias_is_listed_as_zero(reference):
    leaves = reference.leaves(PARTS[2], reference.one)
    zero = [leaf.path for leaf in leaves if leaf.zero]
    assert zero == ["layers/attn/b_k"]
    assert all(("zero" in leaf.to_json()["kind"]) == leaf.zero for leaf in leaves)


@pytest.mark.parametrize("layout", LAYOUTS_OF_ROWS)
def test_a_single_counted_token_gives_the_gradient_of_one_device(layout):
    reference = Reference(run_of(GPT), only=(13, 20))
    computed = reference.on(Layout.parse(layout))
    assert float(computed.gradients[1].weight) == 1.0
    for part in PARTS:
        if part.where in ("forward", "backward", "evaluate"):
            leaves = reference.leaves(part, computed)
            assert all(leaf.passed for leaf in leaves), leaves
    assert max(map(abs, map(float, jax.tree.leaves(reference.one.evaluation)))) > 0


def test_a_users_own_model_and_objective_are_compared_in_one_line():
    assert_same(experiment, "fsdp=4,tensor=2")
    assert_same(BagConfig(), "data=2")
