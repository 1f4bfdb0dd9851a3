"""In the training precision, a bug can be distinguished from rounding."""

import dataclasses

import pytest

from jaxpar.nn import linear
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision
from jaxpar.verify import Reference
from jaxpar.verify.parts import LOGITS, PARTS
from jaxpar.verify.prove import prove
from tests.verify.conftest import LLAMA, run_of
from tests.verify.test_planted import averaged_twice

MODEL = dataclasses.replace(LLAMA, n_layers=2, max_positions=16)


@pytest.mark.slow
@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
def test_rounding_passes_and_a_bug_does_not(compute, monkeypatch):
    run = dataclasses.replace(
        run_of(MODEL, batch_size=8, seq_len=16, microbatches=1),
        precision=Precision(compute=compute),
    )
    reference = Reference(run, precision=True, parts=(*PARTS[:3], LOGITS))
    proof = prove(reference, "data=2,tensor=2")
    assert proof.passed, f"\n{proof}"
    errors = [leaf.error for leaf in proof.leaves if leaf.kind == "gradient"]
    assert min(errors) > 1e-9
    monkeypatch.setattr(linear, "reduce_gradient", averaged_twice)
    proof = prove(reference, "data=2")
    assert not proof.passed
    assert proof.first is not None and proof.first.name == "layers/mlp/w_gate"


def test_logits_are_compared_where_there_are_more_devices_than_rows():
    run = run_of(MODEL, batch_size=4, seq_len=16, microbatches=1)
    reference = Reference(run, parts=(LOGITS,))
    computed = reference.on(Layout.parse("data=2,ring=4"))
    leaves = reference.leaves(LOGITS, computed)
    assert leaves and all(leaf.passed for leaf in leaves)
    assert computed.logits.shape == (4, 16, 120)
