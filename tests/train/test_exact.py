"""With exact=V a step has the same bits on any number of devices that divides V."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxpar.data.source import Text
from jaxpar.errors import UserError
from jaxpar.experiment import Pretrain
from jaxpar.optim.optimizer import AdamW, Muon
from jaxpar.partition.fixed_order import check_exact, exact_or_off, sum_of_parts
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe, create
from jaxpar.train.step import make_eval_step, make_train_step
from tests.train.test_layouts import GPT, LLAMA, place, put, rows

PARTS, STEPS = 8, 3
RATES = {"warmup_steps": 1, "decay_steps": 9}
RECIPES = {
    "float32, AdamW, dropout": Recipe(
        GPT, CausalLM(chunk=8), AdamW(1e-3, **RATES), Precision()
    ),
    # Its smallest matrices are transposed before their norms are taken.
    "bfloat16, Muon, remat, dropout": Recipe(
        dataclasses.replace(LLAMA, remat="dots", dropout=0.1),
        CausalLM(chunk=8),
        Muon(1e-2, **RATES),
        Precision(compute="bfloat16"),
    ),
}


def bits(recipe, layout, microbatches=1, exact=PARTS):
    """All that three steps and an evaluation leave, by path."""
    placed = place(layout)
    state, found = create(recipe, placed, seed=0), {}
    step = make_train_step(recipe, placed, microbatches=microbatches, exact=exact)
    for i in range(STEPS):
        batch = put(rows(i, n=16), placed)
        state, found[i] = step(state, batch)
    evaluation = make_eval_step(recipe, placed, exact=exact)(state.params, batch)
    leaves = jax.tree_util.tree_leaves_with_path((state, found, evaluation))
    return {jax.tree_util.keystr(keys): np.asarray(leaf) for keys, leaf in leaves}


@pytest.mark.slow
@pytest.mark.exact
@pytest.mark.parametrize("name", RECIPES)
def test_parameters_moments_and_metrics_have_the_same_bits(name):
    recipe = RECIPES[name]
    expected = bits(recipe, "data=8")
    for layout, microbatches in (
        ("data=1", 1), ("data=4", 2), ("replica=2,data=4", 1)
    ):  # fmt: skip
        found = bits(recipe, layout, microbatches)
        for path, leaf in expected.items():
            assert leaf.tobytes() == found[path].tobytes(), (layout, path)


@pytest.mark.slow
@pytest.mark.exact
def test_without_exact_the_bits_differ():
    recipe = RECIPES["float32, AdamW, dropout"]
    one, eight = bits(recipe, "data=1", exact=0), bits(recipe, "data=8", exact=0)
    assert any(leaf.tobytes() != eight[path].tobytes() for path, leaf in one.items())


def test_parts_are_added_in_pairs_in_their_order():
    # In any other order, 1 is lost beside 2 ** 24.
    x = np.float32([2**24, 1, 1, -(2**24), 1, 1, 1, 1])
    rows = jax.numpy.asarray(x)
    total = sum_of_parts(lambda rows: rows[0], rows, 8, known_at_run=rows)
    pairs = [[x[0] + x[1], x[2] + x[3]], [x[4] + x[5], x[6] + x[7]]]
    assert float(total) == sum(pairs[0]) + sum(pairs[1])


@pytest.mark.parametrize(
    ("layout", "parts", "microbatches", "rows", "words"),
    [
        ("data=4,tensor=2", 8, 1, 16, "splits sums over tensor"),
        ("data=2,ring=4", 8, 1, 16, "splits sums over context"),
        ("fsdp=8", 8, 1, 16, "slices of the optimizer's state"),
        ("zero1=8", 8, 1, 16, "slices of the optimizer's state"),
        ("data=8", 12, 1, 24, "exact=12 is no power of 2, such as 8 and 16"),
        ("data=8", 8, 2, 16, "8 devices x 2 microbatches divide, such as 16"),
        ("data=3", 8, 1, 24, "such as 4"),
        ("data=8", 8, 1, 12, "nearest legal sizes are 8 and 16"),
    ],
)
def test_what_would_have_other_bits_is_refused(
    layout, parts, microbatches, rows, words
):
    with pytest.raises(UserError, match=words):
        check_exact(Layout.parse(layout), parts, microbatches, rows)
    if microbatches == 1:
        assert exact_or_off(Layout.parse(layout), parts, rows) == 0


def test_an_experiment_checks_its_layout_and_names_its_fields():
    data = Text("synthetic", seq_len=24, batch_size=16)
    known = {"model": GPT, "data": data, "optim": AdamW(1e-3, **RATES), "num_steps": 1}
    layout = Layout.parse("data=8")
    assert Pretrain(**known, layout=layout, exact=16).step_options["exact"] == 16
    with pytest.raises(UserError, match="exact=8: layout fsdp=8"):
        Pretrain(**known, layout=Layout.parse("fsdp=8"), exact=8)
    with pytest.raises(UserError, match="exact=-1"):
        Pretrain(**known, layout=layout, exact=-1)
    with pytest.raises(UserError, match='"microbatch", "round" or "step"'):
        Pretrain(**known, layout=layout, fsdp_gathers="layer")
