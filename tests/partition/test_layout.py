"""Layouts are values: parsed, checked and refused without any device."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxpar import axes
from jaxpar.nn.linear import dense
from jaxpar.nn.param import constant, param
from jaxpar.partition.collectives import local
from jaxpar.partition.layout import Layout
from jaxpar.partition.rules import Rules, if_free
from jaxpar.partition.sharding import constrain, single_device, use_layout


def test_rules_have_a_field_for_each_axis_name():
    assert tuple(f.name for f in dataclasses.fields(Rules)) == axes.NAMES


@pytest.mark.parametrize(
    "text, spelling, sizes",
    [
        ("data=8", "data=8", {"data": 8}),
        ("tensor=2,fsdp=4", "fsdp=4,tensor=2", {"data": 4, "tensor": 2}),
        ("data=1", "data=1", {"data": 1}),
        ("fsdp=4, tensor=1", "fsdp=4", {"data": 4}),
        ("tensor=8,replica=2", "replica=2,tensor=8", {"replica": 2, "tensor": 8}),
        ("tensor=2+sp,data=4", "data=4,tensor=2+sp", {"data": 4, "tensor": 2}),
        ("ring=2,fsdp=4", "fsdp=4,ring=2", {"data": 4, "context": 2}),
        ("ulysses=2", "ulysses=2", {"context": 2}),
        ("data=2,stage=4", "stage=4,data=2", {"stage": 4, "data": 2}),
        ("data=2,stage=4x2", "stage=4x2,data=2", {"stage": 4, "data": 2}),
        ("stage=2x1", "stage=2", {"stage": 2}),
    ],
)
def test_a_spelling_is_read_and_written_in_mesh_order(text, spelling, sizes):
    layout = Layout.parse(text)
    assert layout.spelling == spelling
    assert layout.sizes == sizes
    assert Layout.parse(layout.spelling) == layout


@pytest.mark.parametrize(
    "text, message",
    [
        ("stage=1x2", "rounds go round two stages or more; write stage=2x2, or leave"),
        ("stage=2x2x2", "stage='2x2x2' is no positive size"),
        ("stage=2x0", "no positive size"),
        ("stage=2x", "no positive size"),
        ("data=2x2", "no positive size"),
        ("tensor=2+cp", "no positive size"),
        ("ring=2,context=2", "at most one of context, ring, ulysses"),
        ("dp=8", "unknown mesh axis 'dp'"),
        ("data=4,fsdp=2", "at most one"),
        ("data=4,data=2", "twice"),
        ("data=0", "no positive size"),
        ("data", "no positive size"),
    ],
)
def test_a_bad_spelling_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        Layout.parse(text)


def test_a_mesh_axis_serves_an_array_once():
    rules = Rules(heads="tensor", mlp="tensor")
    with pytest.raises(ValueError, match="'tensor' twice, for 'heads' and 'mlp'"):
        rules.resolve(("heads", "mlp"))


def test_an_if_free_axis_splits_only_where_no_other_name_uses_it():
    rules = Rules(seq=if_free("tensor"), heads="tensor")
    assert rules.resolve(("seq", "embed")) == (("tensor",), ())
    assert rules.resolve(("seq", "heads")) == ((), ("tensor",))


def test_arrays_used_together_are_split_alike():
    computed = Layout.parse("data=2,tensor=2+sp").computed
    tokens, logits = ("batch", "seq"), ("batch", "seq", "vocab")
    assert computed.resolve(tokens)[1] == ("context", "tensor")
    assert computed.resolve(tokens, [logits])[1] == ("context",)
    assert computed.resolve(tokens, [("mlp",)])[1] == ("context", "tensor")


@pytest.mark.parametrize("word", ["context", "ring"])
def test_zigzag_gives_each_device_an_early_and_a_late_chunk(word):
    order = Layout.parse(f"{word}=2").token_numbers(8)
    assert order.tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    assert Layout.parse("ulysses=2").token_numbers(8).tolist() == list(range(8))
    with pytest.raises(ValueError, match="seq_len=6 .* by 4, .* are 4 and 8"):
        Layout.parse(f"{word}=2").token_numbers(6)


def test_two_if_free_rules_for_one_axis_are_refused():
    rules = Rules(seq=if_free("tensor"), batch=if_free("tensor"))
    with pytest.raises(ValueError, match="twice"):
        rules.resolve(("batch", "seq"))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="Unknown axis 'width'"):
        Layout.parse("data=1").spec(("width",))
    with pytest.raises(ValueError, match="no such mesh axis"):
        Rules(embed="model")
    with pytest.raises(ValueError, match="Unknown axis"):
        param(nnx.Rngs(params=0), constant(1.0), width=3)


def test_an_indivisible_size_names_tensor_axis_and_the_nearest_legal():
    layout = Layout.parse("tensor=4")
    with pytest.raises(ValueError, match=r"w_q .*'heads' of size 6 .* by 4 .* 4 or 8"):
        layout.check("w_q", (32, 6, 8), ("embed", "heads", "head_dim"))


def test_a_layout_of_ten_thousand_devices_is_still_a_value():
    layout = Layout.parse("fsdp=1024,tensor=8")
    assert layout.abstract().size == 8192
    assert layout.piece((12_288, 49_152), ("embed", "mlp")) == (12, 6144)


def test_placing_on_another_number_of_devices_is_refused():
    with pytest.raises(ValueError, match="needs 4 devices; it was given 8"):
        Layout.parse("data=4").on(jax.devices())


def test_zero1_slices_the_optimizer_and_fsdp_the_parameters_too():
    names = ("embed", "mlp")
    specs = {
        word: [
            Layout.parse(f"{word}=8").spec(names, which)[0]
            for which in ("stored", "optimizer", "computed")
        ]
        for word in ("data", "zero1", "fsdp")
    }
    assert specs == {
        "data": [None, None, None],
        "zero1": [None, "data", None],
        "fsdp": ["data", "data", None],
    }


def test_constrain_without_a_layout_is_an_error():
    with pytest.raises(ValueError, match="No layout is in force"):
        constrain(jnp.ones((2, 2)), "batch", "embed")
    with single_device():
        constrain(jnp.ones((2, 2)), "batch", "embed")


def test_constrain_needs_a_name_for_every_axis():
    with (
        use_layout(Layout.parse("data=1")),
        pytest.raises(ValueError, match="was given"),
    ):
        constrain(jnp.ones((2, 2)), "batch")


def test_local_reduces_over_the_devices_that_split_an_axis():
    placed = Layout.parse("data=2,tensor=4").on(jax.devices())
    logits = jnp.arange(16.0).reshape(2, 8)
    logits = jax.device_put(logits, placed.sharding(("batch", "vocab")))

    def total(x):
        with use_layout(placed):
            run = local(
                lambda collectives, x: collectives.psum(jnp.sum(x, axis=-1)),
                in_axes=[("batch", "vocab")],
                out_axes=("batch",),
                over="vocab",
            )
            return run(x)

    assert jax.jit(total)(logits).tolist() == logits.sum(-1).tolist()


def test_dense_contracts_last_letters_with_first():
    w = param(nnx.Rngs(params=0), constant(1.0), mlp=4, embed=3)
    with pytest.raises(ValueError, match="contract x's last"):
        dense("BTD,FD->BTF", jnp.ones((1, 2, 3)), w)
