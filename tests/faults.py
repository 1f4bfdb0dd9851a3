"""The table of faults, tests/FAULTS.md, as data."""

from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("FAULTS.md")


class Fault(NamedTuple):
    """A row of the table."""

    number: int
    fault: str
    tier: str
    tests: tuple[str, ...]
    """As FILE::TEST, from the folder of the table."""


def faults() -> list[Fault]:
    """The rows, in their order."""
    lines = TABLE.read_text().splitlines()
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return [
        Fault(int(number), fault, tier, tuple(tests.split()))
        for number, fault, _, tier, tests in (row for row in cells if len(row) == 5)
        if number.isdigit()
    ]


def tests_of(tier: str) -> set[str]:
    """The tests that inject the faults of a tier."""
    return {test for fault in faults() if fault.tier == tier for test in fault.tests}
