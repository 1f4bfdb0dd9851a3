"""Every layout computes a mixture of experts as one device does.

pytest -m "slow or not slow" tests/verify/test_mixtures.py -k "dropless and ring"
"""

import pytest

from jaxpar.verify.prove import prove
from tests.verify.conftest import USUAL, cases

LAYOUTS = (
    "data=8",
    "fsdp=8",
    "data=2,expert=4",
    "fsdp=2,expert=4",
    "data=2,expert=2,tensor=2",
    "data=2,ring=4",
    "stage=4,data=2",
    "stage=2,expert=2,tensor=2+sp",
    "stage=2x2,data=2,expert=2",
)
# The others run with `pytest -m slow tests/verify`.
EVERYDAY = {("dropless", "data=2,expert=4")}
OF_ROUTERS = {"router", "derivative", "bias"}


@pytest.mark.parametrize(
    "form, layout", cases(("dropless", "slots"), LAYOUTS, EVERYDAY)
)
def test_a_layout_computes_a_mixture_as_one_device_does(form, layout, reference):
    proof = prove(reference, layout)
    assert proof.passed, f"\n{proof}"
    assert {leaf.kind for leaf in proof.leaves} == USUAL | OF_ROUTERS
