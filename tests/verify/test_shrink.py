"""A proof shrinks an experiment, and keeps its kind of model."""

import dataclasses
import functools
import itertools
import math

import pytest

from experiments.quickstart import experiment as quickstart
from jaxpar.errors import UserError
from jaxpar.models import sizes
from jaxpar.models.base import ModelConfig
from jaxpar.models.describe import fields_of
from jaxpar.nn.norm import RMSNorm
from jaxpar.partition.layout import CONTEXT_WORDS, DATA_WORDS, Layout
from jaxpar.train.objective import CausalLM
from jaxpar.verify import shrink
from jaxpar.verify.prove import verify
from jaxpar.verify.shrink import require_accepted, shrunk
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
    assert small.data.batch_size % (2 * layout.batch_divisor) == 0


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
    small = shrunk(odd, Layout.parse("data=2"))
    assert small.model == odd.model and small.data.seq_len == 16


def test_a_layout_that_cannot_split_the_model_is_refused_before_it_is_shrunk():
    with pytest.raises(ValueError, match="kv_heads.*size 8.*divisible by 16"):
        shrunk(BIG, Layout.parse("tensor=16"))


class Derived(ModelConfig):
    """A user's own attention, the width of whose heads is no field."""

    any_order = has_cache = True

    def build(self, rngs):
        names = ("vocab_size", "n_layers", "d_embed", "n_heads", "max_positions")
        return sizes.gpt(**{name: getattr(self, name) for name in names}).build(rngs)


own_attention = dataclasses.make_dataclass(
    "OwnAttention",
    [("n_layers", int, 6), ("d_embed", int, 768), ("n_heads", int, 12),
     ("vocab_size", int, 5000), ("max_positions", int, 512)],
    bases=(Derived,), frozen=True,
)  # fmt: skip
# Sizes that 1 to 8 devices divide, in zigzag order, too; not so 105 padded ids.
DIVIDED = dataclasses.replace(
    sizes.llama(
        vocab_size=6720, n_layers=1680, d_embed=3360, n_heads=1680, n_kv_heads=840,
        d_mlp=840, max_positions=1680,
    ),
    vocab_multiple=105,
)  # fmt: skip
ONE_KEY = dataclasses.replace(
    sizes.llama(
        vocab_size=1003, n_layers=5, d_embed=36, n_heads=6, n_kv_heads=1, d_mlp=50,
        max_positions=60,
    ),
    vocab_multiple=1,
)  # fmt: skip
EXPERIMENTS = {
    "quickstart": quickstart,
    "grouped": BIG,
    "divided": run_of(DIVIDED, batch_size=840, seq_len=1680, microbatches=1),
    "odd": run_of(ONE_KEY, batch_size=12, seq_len=60, microbatches=1),
    "own attention": run_of(own_attention(), batch_size=24, seq_len=48, microbatches=3),
    "own": own,
    "exact": dataclasses.replace(quickstart, exact=8, microbatches=2),
}


def layouts(most=8):
    """Every layout of up to so many devices."""
    for r, s, d, c, t in itertools.product(range(1, most + 1), repeat=5):
        if r * s * d * c * t > most:
            continue
        words = itertools.product(
            (f"replica={r},stage={s}{x}" for x in ("", "x2")[: None if s > 1 else 1]),
            (f"{word}={d}" for word in DATA_WORDS[: None if d > 1 else 1]),
            (f"{word}={c}" for word in CONTEXT_WORDS[: None if c > 1 else 1]),
            (f"tensor={t}{sp}" for sp in ("", "+sp")[: None if t > 1 else 1]),
        )
        yield from (Layout.parse(",".join(each)) for each in words)


@functools.cache
def recipe_of(model):
    """A recipe that keeps the shapes of its model, of which few are made here."""
    return dataclasses.replace(BIG.recipe(), model=model)


@functools.cache
def params_on(model, layout):
    return recipe_of(model).abstract(layout).params


def require_divided(experiment, layout):
    """What `require_accepted` refuses, without tracing the model for each layout."""
    dataclasses.replace(experiment, layout=layout)
    params = params_on(experiment.model, layout)
    if layout.attention == "ulysses":
        ways = math.prod(layout.sizes.get(axis, 1) for axis in ("context", "tensor"))
        fields = fields_of(experiment.model)
        for name in ("n_heads", "n_kv_heads"):
            if fields.get(name, ways) % ways:
                raise UserError(f"{name} and ulysses")
    return params


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_shrinking_refuses_no_layout_that_the_whole_accepts(name, monkeypatch):
    monkeypatch.setattr(shrink, "require_accepted", require_divided)
    accepted = check_all_layouts(EXPERIMENTS[name], require_divided)
    least = {"divided": len([*layouts()]), "exact": 6}
    assert accepted >= least.get(name, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quickstart", "own attention", "own"])
def test_it_refuses_none_where_each_is_traced(name):
    # Every 41st, which is no multiple of how many forms a word has.
    assert check_all_layouts(EXPERIMENTS[name], require_accepted, every=41) > 2


def check_all_layouts(experiment, require, every=1):
    """How many layouts the whole accepts; for each, what is shrunk must be, too."""
    accepted = 0
    for layout in [*layouts()][::every]:
        try:
            require(experiment, layout)
        except UserError:
            continue
        accepted += 1
        small = shrunk(experiment, layout)
        require(small, layout)
        assert_small(small, layout)
    return accepted


def assert_small(small, layout):
    """Its sizes are the least; two microbatches and chunks are in what is proven."""
    pieces = layout.sizes.get("context", 1) * layout.sizes.get("tensor", 1)
    found, text = fields_of(small.model), layout.spelling
    most_layers = max(2, layout.n_stages * layout.n_rounds) * len(
        found.get("windows", (0,))
    )
    assert found.get("n_layers", 0) <= most_layers, text
    assert found.get("n_heads", 0) <= 2 * max(2, pieces), text
    assert found["d_embed"] <= 32 * layout.n_devices * pieces, text
    assert found["vocab_size"] <= max(96, 840), text
    assert small.data.seq_len < 16 + 2 * pieces, text
    assert small.microbatches == 2 * layout.n_stages
    assert small.data.batch_size == max(4 * layout.batch_divisor, small.exact), text
    if isinstance(small.objective, CausalLM):
        (axes,) = layout.split(("seq",), "computed")
        in_row = 2 * math.prod(layout.sizes[axis] for axis in axes)
        assert in_row * small.objective.chunk <= small.data.seq_len, text


ULYSSES = pytest.mark.parametrize(
    "text", ["data=2,ulysses=4", "fsdp=2,ulysses=4", "ulysses=8", "ulysses=2,tensor=4"]
)


@pytest.mark.slow
@ULYSSES
def test_ulysses_is_proven_of_an_experiment_with_eight_heads(text):
    proof = verify(quickstart, text)
    assert proof.passed, f"\n{proof}"
    assert "in 2 microbatches" in proof.about


@ULYSSES
def test_ulysses_keeps_as_many_heads_as_it_splits(text):
    layout = Layout.parse(text)
    small = shrunk(quickstart, layout)
    assert small.model.attention.n_heads == small.model.attention.n_kv_heads
    assert small.model.attention.n_heads == 8 // layout.batch_divisor


def test_heads_that_ulysses_cannot_split_are_refused_at_full_size():
    model = sizes.gpt(
        vocab_size=90, n_layers=2, d_embed=96, n_heads=12, max_positions=64
    )
    with pytest.raises(UserError, match="12 heads are not divisible by 8"):
        shrunk(run_of(model), Layout.parse("ulysses=8"))
