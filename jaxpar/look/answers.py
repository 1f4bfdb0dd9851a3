"""What two runs answer to the same prompts, side by side."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxpar.errors import UserError
from jaxpar.generate.answer import answer
from jaxpar.generate.sampling import Sampling
from jaxpar.run.opening import OpenRun
from jaxpar.tables import Grid, Report

GREEDY = Sampling(temperature=0.0)
HEADS = ("prompt", "expected", "before", "after")


@dataclasses.dataclass(frozen=True)
class Answers(Report):
    """Rows of a prompt, the answer expected, that of one run, and that of another."""

    rows: tuple[tuple[str, ...], ...]

    @property
    def hits(self) -> tuple[int, int]:
        """How many answers of each run are as expected, but for spaces around."""
        texts = [[text.strip() for text in row[1:]] for row in self.rows]
        return sum(e == b for e, b, _ in texts), sum(e == a for e, _, a in texts)

    @property
    def grid(self) -> Grid:
        """Four columns of texts, and how many answers are as expected."""
        before, after = self.hits
        said = f"As expected, of {len(self.rows)}: before {before}, after {after}"
        return Grid(HEADS, self.rows, left=4, after=(said,))

    def to_json(self) -> dict[str, Any]:
        """The same as one object."""
        return {"answers": [dict(zip(HEADS, row, strict=True)) for row in self.rows]}


def compare_answers(
    before: OpenRun,
    after: OpenRun,
    pairs: Sequence[tuple[str, str]],
    how: Sampling = GREEDY,
) -> Answers:
    """The answers of two opened runs to each prompt of pairs (prompt, expected).

    Raises:
      UserError: there are no pairs.
    """
    if not pairs:
        raise UserError("compare_answers needs at least one pair (prompt, expected).")
    prompts, expected = zip(*pairs, strict=True)
    found = [prompts, expected]
    for opened in (before, after):
        # Copies fill the rows up to what the layout divides.
        divisor = opened.placed.for_generation().layout.batch_divisor
        filled = prompts + prompts[:1] * (-len(prompts) % divisor)
        found.append(tuple(answer(opened, filled, how)[1][: len(prompts)]))
    return Answers(tuple(zip(*found, strict=True)))
