"""Noted activations are returned by the step, and cost nothing unless recorded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxpar.nn.places import one_document_per_row
from jaxpar.partition.layout import Layout
from jaxpar.partition.notes import note, recorded, recording
from jaxpar.partition.sharding import single_device
from jaxpar.verify.computed import Computed, Noted
from jaxpar.verify.packed_rows import Packed
from tests.verify.conftest import LLAMA, run_of

SMALL = dataclasses.replace(LLAMA, n_layers=4, max_positions=16)
WINDOWS = Packed(n_rows=4, seq_len=16, vocab_size=120)


@pytest.mark.parametrize("remat", ["none", "full", "save:attn/out"])
def test_notes_of_every_layer_leave_loops_and_rematerialisation(remat):
    model = dataclasses.replace(SMALL, remat=remat, windows=(0, 5))
    run = run_of(model, batch_size=4, seq_len=16, microbatches=2)
    notes = Computed(run, Layout.parse("data=2"), WINDOWS).notes
    assert list(notes) == [
        "embed/out",
        "layers/attn/mixed", "layers/attn/out", "layers/mlp/hidden",
        "layers/mlp/out", "layers/block/out",
        "layers/attn/mixed#2", "layers/attn/out#2", "layers/mlp/hidden#2",
        "layers/mlp/out#2", "layers/block/out#2",
        "norm/out",
    ]  # fmt: skip
    assert notes["layers/block/out#2"].shape == (2, 2, 16, 16)


def test_a_note_is_the_input_of_the_next_layer():
    with single_device():
        model = SMALL.build(nnx.Rngs(params=0))
        tokens = jnp.arange(32).reshape(2, 16)

        def run(tokens):
            with recording() as notes:
                x, _ = model(tokens, one_document_per_row(tokens))
            return x, notes.found

        x, found = jax.jit(run)(tokens)
    np.testing.assert_array_equal(x, found["norm/out"])
    last = found["layers/block/out"][-1]
    with single_device():
        np.testing.assert_allclose(model.norm(last), x, rtol=1e-6)


@pytest.mark.parametrize("layout", ["stage=2", "stage=2x2", "stage=4"])
def test_notes_of_a_pipeline_stand_in_the_order_of_layers_and_rows(layout):
    run = run_of(SMALL, batch_size=8, seq_len=16, microbatches=4)
    windows = Packed(n_rows=8, seq_len=16, vocab_size=120)
    one, staged = (
        Computed(run, Layout.parse(text), windows).notes for text in ("data=1", layout)
    )
    assert list(one) == list(staged)
    for name, expected in one.items():
        np.testing.assert_allclose(staged[name], expected, rtol=1e-3, atol=1e-4)


def test_notes_of_an_inner_trace_are_not_kept():
    with recording() as notes:
        note("outer", jnp.ones(2))
        jax.jit(lambda x: note("inner", x))(jnp.ones(2))
        jax.lax.map(lambda x: note("loop", x), jnp.ones(2))
        jax.closure_convert(lambda x: note("converted", x), jnp.ones(2))
    assert list(notes.found) == ["outer"]
    assert recorded() is None


def test_notes_change_a_program_only_if_they_are_recorded():
    run = run_of(SMALL, batch_size=4, seq_len=16, microbatches=1)
    computed = Computed(run, Layout.parse("data=2"), WINDOWS)

    def loss(params, batch, objective):
        model = computed.recipe.merge(computed.anatomy, params)
        return objective(model, batch, None).loss

    with single_device():
        shapes = computed.anatomy.shapes
        texts = [
            str(jax.make_jaxpr(lambda p, b, o=o: loss(p, b, o))(shapes, computed.batch))
            for o in (run.objective, run.objective, Noted(run.objective))
        ]
    assert texts[0] == texts[1]
    # When recorded, the loop over layers returns each layer's notes.
    assert texts[2] != texts[0]
