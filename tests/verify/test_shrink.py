"""A proof shrinks an experiment, and keeps its kind of model."""

import dataclasses

import pytest

from jaxpar.models import sizes
from jaxpar.nn.norm import RMSNorm
from jaxpar.partition.layout import Layout
from jaxpar.verify.shrink import shrunk
from tests.outside.own_model import experiment as own
from tests.verify.conftest import run_of

GROUPED = dataclasses.replace(
    sizes.llama(
        vocab_size=32_000, n_layers=12, d_embed=1024, n_heads=16, n_kv_heads=8,
        d_mlp=2816, max_positions=2048, qk_norm=RMSNorm(), tied=True,
    ),
    windows=(0, 512, 512), remat="full", dropout=0.1,
)  # fmt: skip
BIG = run_of(GROUPED, batch_size=64, seq_len=1024, microbatches=2)
LAYOUTS = ("data=8", "fsdp=4,tensor=2", "tensor=8", "replica=2,zero1=4")


@pytest.mark.parametrize("text", LAYOUTS)
def test_sizes_shrink_to_what_the_layout_divides(text):
    layout = Layout.parse(text)
    small = shrunk(BIG, layout)
    small.recipe().abstract(layout)
    model = small.model
    assert model.n_layers == 6 and model.d_embed <= 128 and model.vocab_size == 96
    assert small.data.seq_len == model.max_positions == 16
    assert small.microbatches == BIG.microbatches
    assert small.data.batch_size % (2 * layout.batch_divisor) == 0
    assert small.objective.chunk < small.data.seq_len


def test_the_kind_of_block_is_kept():
    small = shrunk(BIG, Layout.parse("data=2")).model
    for name in ("remat", "dropout", "tied", "learned_positions", "norm"):
        assert getattr(small, name) == getattr(GROUPED, name)
    assert small.windows == (0, 8, 8)
    assert small.attention.qk_norm == GROUPED.attention.qk_norm
    assert small.attention.n_heads > small.attention.n_kv_heads > 1
    assert small.mlp.gated


def test_a_model_that_refuses_small_sizes_is_not_shrunk():
    small = shrunk(own, Layout.parse("data=4"))
    assert small.model.d_embed >= 8 and small.objective == own.objective

    @dataclasses.dataclass(frozen=True)
    class Odd(type(own.model)):
        d_embed: int = 33

        def __post_init__(self):
            if self.d_embed != 33:
                raise ValueError("This model is 33 wide.")

    odd = dataclasses.replace(own, model=Odd())
    assert shrunk(odd, Layout.parse("data=2")).model == odd.model


def test_a_layout_that_cannot_split_the_model_is_refused_before_it_is_shrunk():
    with pytest.raises(ValueError, match="kv_heads.*size 8.*divisible by 16"):
        shrunk(BIG, Layout.parse("tensor=16"))
