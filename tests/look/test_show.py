"""The picture of an experiment: true, complete, and free of charge.

pytest tests/look/test_show.py
"""

import dataclasses
import os
import subprocess
import sys

import jax
import pytest

from jaxpar.data.source import Text
from jaxpar.data.tokenizer import Bytes
from jaxpar.experiment import Pretrain
from jaxpar.look import show
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision


def experiment(model=sizes.GPT_124M, layout="fsdp=4,tensor=2", **fields) -> Pretrain:
    return Pretrain(
        model=model,
        data=Text("synthetic", tokenizer=Bytes(), seq_len=16, batch_size=4096),
        optim=AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=3),
        layout=Layout.parse(layout),
        num_steps=3,
        **fields,
    )


def test_every_parameter_stands_in_the_picture_under_its_path():
    run = experiment()
    recipe = run.recipe()
    wanted = {
        "/".join(key.key for key in path): leaf.shape
        for path, leaf in jax.tree.leaves_with_path(recipe.anatomy.shapes)
    }
    assert {row.path: row.shape for row in show(run).rows} == wanted


def test_a_row_says_axes_shape_piece_and_bytes():
    text = str(show(experiment()))
    (line,) = [row for row in text.splitlines() if row.startswith("embedding ")]
    cells = [cell for cell in line.split("  ") if cell]
    assert [cell.strip() for cell in cells] == [
        "embedding", "vocab embed", "(50304, 768)", "(25152, 192)", "18.4 MiB",
    ]  # fmt: skip


def test_the_largest_piece_comes_first_and_the_sum_last():
    table = show(experiment())
    sizes_ = [row.bytes for row in table.rows]
    assert sizes_ == sorted(sizes_, reverse=True)
    # GPT-2 small, its vocabulary padded from 50,257 to 50,304.
    assert table.count == 124_475_904
    assert f"{len(table.rows)} parameters, 124,475,904 numbers" in str(table)


def test_pieces_times_their_owners_are_the_whole():
    table = show(experiment(layout="data=1"))
    assert table.bytes == 4 * table.count
    halved = show(experiment(layout="data=1", precision=Precision(params="bfloat16")))
    assert halved.bytes == 2 * table.count


def copied(table):
    return {(each.what, each.axis): each for each in table.copied}


def test_what_is_copied_is_said_with_the_layout_that_really_splits_it():
    run = experiment(layout="data=8")
    found = copied(show(run))
    parameters, state = (
        found["parameters", "data"],
        found["optimizer state", "data"],
    )
    assert (parameters.layout, state.layout) == ("fsdp=8", "zero1=8")
    assert parameters.bytes == show(run).bytes
    for each in (parameters, state):
        assert f"is copied over data; {each.layout} leaves" in str(each)
    assert parameters.then == show(run, "fsdp=8").bytes
    assert state.then == show(run, "zero1=8").optimizer
    assert not show(experiment(layout="data=1")).copied


def test_what_is_recommended_is_the_same_however_often_fsdp_gathers():
    by_tick, by_round = (
        copied(show(experiment(layout="fsdp=2,stage=2x2", fsdp_gathers=how)))
        for how in ("microbatch", "round")
    )
    assert by_tick == by_round
    assert by_tick["parameters", "stage"].layout == "fsdp=4"


def test_a_word_that_splits_nothing_of_it_is_not_recommended():
    table = show(experiment())
    # Biases of heads have no axis that zero1 or fsdp splits.
    biases = copied(table)["parameters", "data"]
    rows = [row for row in table.rows if "data" in row.copied]
    assert {"layers/attn/b_q", "layers/mlp/b_up"} <= {row.path for row in rows}
    assert biases.layout == "" and "no zero1 or fsdp here splits it" in str(biases)
    # replica splits no parameter under any name: fsdp has to take its place.
    over_replica = copied(show(experiment(), "replica=2,fsdp=4"))
    assert over_replica["parameters", "replica"].layout == "fsdp=8"
    # zero1=8 would split the optimizer's state as well, and copy the parameters.
    assert over_replica["optimizer state", "replica"].layout == "fsdp=8"


def test_a_layout_that_the_batch_does_not_fit_is_not_recommended():
    data = Text("synthetic", tokenizer=Bytes(), seq_len=16, batch_size=4)
    run = dataclasses.replace(experiment(layout="replica=2,fsdp=2"), data=data)
    assert copied(show(run))["parameters", "replica"].layout == "fsdp=4"
    narrow = dataclasses.replace(run.data, batch_size=4)
    run = dataclasses.replace(run, data=narrow, layout=Layout.parse("fsdp=4,tensor=2"))
    assert copied(show(run))["parameters", "tensor"].layout == ""


def test_another_layout_is_shown_without_touching_the_experiment():
    run = experiment()
    assert show(run, "fsdp=8").layout == Layout.parse("fsdp=8")
    assert show(run, Layout.parse("fsdp=8")) == show(run, "fsdp=8")
    assert run.layout == Layout.parse("fsdp=4,tensor=2")


def test_a_model_beyond_any_machine_costs_nothing_to_show():
    before = len(jax.live_arrays())
    table = show(experiment(sizes.GPT_175B, layout="fsdp=512,tensor=8"))
    assert 174e9 < table.count < 176e9
    assert table.activations > 0
    assert len(jax.live_arrays()) == before


def test_a_layout_that_does_not_divide_is_refused_by_name():
    with pytest.raises(ValueError, match="heads.*12.*nearest legal size"):
        show(experiment(), "tensor=8")


def test_a_notebook_shows_a_table_with_the_same_rows():
    table = show(experiment())
    page = table._repr_html_()
    assert page.count("<tr>") == len(table.rows) + 1
    assert "layers/attn/w_q" in page


def test_describing_an_experiment_starts_no_backend():
    """Else no devices could be simulated after it, as `verify` and `pretrain` do."""
    code = (
        "import jax, jaxpar\n"
        "from experiments.quickstart import experiment\n"
        "jaxpar.show(experiment)\n"
        "jax.config.update('jax_num_cpu_devices', 8)\n"
        "assert jax.device_count() == 8"
    )
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
