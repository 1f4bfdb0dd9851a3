"""tests/FAULTS.md has every fault once, and each with tests that there are.

pytest tests/test_faults_table.py
"""

import ast
from pathlib import Path

from tests.faults import faults

HERE = Path(__file__).parent


def test_every_fault_has_a_tier_and_tests_that_exist():
    rows = faults()
    assert [row.number for row in rows] == list(range(1, 46))
    missing = []
    for row in rows:
        assert row.tier in ("P", "N") and row.tests, row
        for name in row.tests:
            file, _, test = name.partition("::")
            body = ast.parse((HERE / file).read_text()).body
            if test not in {getattr(node, "name", None) for node in body}:
                missing.append(name)
    assert not missing
