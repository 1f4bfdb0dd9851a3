"""The benchmark of accelerators runs, and says when a kernel is wrong."""

import dataclasses

import jax.numpy as jnp
import pytest

from experiments.bench import accelerator
from jaxpar.nn.kernel_table import FUSED


@pytest.fixture
def table():
    """The table of kernels, as it was afterwards."""
    before = dict(FUSED)
    yield FUSED
    FUSED.clear()
    FUSED.update(before)


@pytest.mark.slow
def test_the_benchmark_runs_at_toy_size(table, capsys):
    assert accelerator.main(["--steps", "1", "--layout", "data=1"]) == 0
    said = capsys.readouterr().out
    for words in ("splash kernel on packed rows", "Pallas kernel with segments: "):
        assert words in said
    assert said.count("tokens/s, MFU unknown here") == 3


@dataclasses.dataclass(frozen=True)
class Wrong:
    """A kernel that sees other documents."""

    kernel: object

    def forward(self, q, k, v, where, *others):
        where = where._replace(segments=jnp.zeros_like(where.segments))
        return self.kernel.forward(q, k, v, where, *others)

    def backward(self, *args):
        return self.kernel.backward(*args)


def test_a_wrong_kernel_is_refused(table, capsys, monkeypatch):
    right = accelerator.INTERPRETED["Triton"]
    monkeypatch.setattr(accelerator, "INTERPRETED", {"Triton": Wrong(right)})
    assert accelerator.main(["--widths", "0.1B"]) == 1
    assert "nothing is timed" in capsys.readouterr().err


def test_as_many_layers_run_as_fit():
    def need(n_layers):
        return 10 + 3 * n_layers

    assert accelerator.layers_that_fit(need, 30, 12) == 0
    for limit, layers in ((13, 1), (15.9, 1), (16, 2), (40.5, 10), (1e9, 30)):
        assert accelerator.layers_that_fit(need, 30, limit) == layers
