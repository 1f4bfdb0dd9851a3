"""Models that walk along the sequence: right in order, refused where it is another."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxpar.errors import UserError
from jaxpar.experiment import Pretrain
from jaxpar.look import show
from jaxpar.models.base import Aux, ModelConfig
from jaxpar.nn.embed import lookup
from jaxpar.nn.linear import dense
from jaxpar.nn.param import fan_in, normal, param
from jaxpar.nn.sequence import as_stored, in_order
from jaxpar.partition.layout import Layout
from jaxpar.partition.sharding import constrain, gather, single_device, use_layout
from jaxpar.verify.prove import verify
from tests.verify.conftest import run_of

HIDDEN = ("batch", "seq", "mlp")


@dataclasses.dataclass(frozen=True)
class Walk(ModelConfig):
    """Of each kind of walk one, between in_order and as_stored or as tokens come."""

    orders: bool = False
    any_order: bool = False
    vocab_size: int = 96
    d_embed: int = 16
    d_mlp: int = 32
    max_positions: int = 32

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        return Walker(self, rngs)


class Walker(nnx.Module):
    def __init__(self, config: Walk, rngs: nnx.Rngs):
        V, D, F = config.vocab_size, config.d_embed, config.d_mlp
        self.orders = config.orders
        self.embedding = param(rngs, normal(1.0), vocab=V, embed=D)
        self.w_up = param(rngs, fan_in("embed"), embed=D, mlp=F)
        self.kernel = param(rngs, normal(0.5), width_=3, mlp=F)
        self.w_down = param(rngs, fan_in("mlp"), mlp=F, embed=D)
        self.w_out = param(rngs, fan_in("embed"), embed=D, vocab=V)

    def __call__(self, tokens, where, keys=None, cache=None):
        x = constrain(lookup(self.embedding, tokens), "batch", "seq", "embed")
        # Not alike along embed, so parameters must be gathered in order.
        x = x + jnp.linspace(-1, 1, x.shape[2], dtype=x.dtype)[None, None]
        y = jnp.tanh(dense("BTD,DF->BTF", x, self.w_up))
        y = in_order(y, *HIDDEN) if self.orders else y
        y = cumsum(scan(associative(convolution(y, gather(self.kernel)))))
        y = as_stored(y, *HIDDEN) if self.orders else y
        return x + dense("BTF,FD->BTD", jnp.tanh(y), self.w_down), Aux()

    def unembed(self, x):
        return dense("BTD,DV->BTV", x, self.w_out)


def cumsum(x):
    return jnp.cumsum(x, axis=1) / 4


def scan(x):
    def step(h, x):
        h = 0.5 * h + x
        return h, jnp.sin(h)

    rows = jax.lax.scan(step, jnp.zeros_like(x[:, 0]), x.swapaxes(0, 1))[1]
    return rows.swapaxes(0, 1)


def associative(x):
    def joined(one, two):
        return one[0] * two[0], two[0] * one[1] + two[1]

    return jax.lax.associative_scan(joined, (jnp.full_like(x, 0.7), x), axis=1)[1]


def convolution(x, kernel):
    """Each channel with its own kernel [width, F], over earlier tokens."""
    return jax.lax.conv_general_dilated(
        x, kernel[:, None].astype(x.dtype), (1,), [(len(kernel) - 1, 0)],
        dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=x.shape[2],
    )  # fmt: skip


def walking(**fields) -> Pretrain:
    return run_of(Walk(**fields), batch_size=8, seq_len=32, microbatches=1)


@pytest.mark.parametrize(
    "layout",
    [
        "ring=4",
        "fsdp=2,ring=2",
        pytest.param("context=2", marks=pytest.mark.slow),
        pytest.param("fsdp=2,ring=2,tensor=2+sp", marks=pytest.mark.slow),
    ],
)
def test_a_walk_in_order_is_right_on_every_layout(layout):
    proof = verify(walking(orders=True, any_order=True), layout)
    assert proof.passed, f"\n{proof}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", ["ulysses=4", "fsdp=4,ulysses=2", "data=2,tensor=2+sp"]
)
def test_a_walk_is_right_where_a_sequence_is_split_in_order(layout):
    proof = verify(walking(), layout)
    assert proof.passed, f"\n{proof}"


def test_a_walk_that_promises_any_order_falsely_is_found():
    proof = verify(walking(any_order=True), "ring=4")
    assert not proof.passed and "splitting over ring" in proof.verdict


@pytest.mark.parametrize("layout", ["ring=4", "context=2", "data=2,ring=2,tensor=2"])
@pytest.mark.parametrize("look", [show, verify])
def test_a_walk_that_promises_nothing_is_refused_zigzag_rows(look, layout):
    with pytest.raises(UserError, match=r"^Walk: layout .* zigzag .*any_order = True"):
        look(walking(), layout)


@pytest.mark.parametrize(
    "text", ["data=8", "ring=4", "ulysses=4", "data=2,context=2,tensor=2+sp"]
)
@pytest.mark.parametrize("width, name", [(24, "mlp"), (3, "embed")])
def test_rows_in_order_are_those_of_one_device_and_go_back(text, width, name):
    layout = Layout.parse(text)
    placed = layout.on(jax.devices()[: layout.n_devices])
    whole = jax.random.normal(jax.random.key(0), (8, 16, width))
    x = jax.device_put(
        whole[:, layout.token_numbers(16)], placed.sharding(("batch", "seq", name))
    )

    @jax.jit
    def there_and_back(x):
        with use_layout(placed):
            ordered = in_order(x, "batch", "seq", name)
            return ordered, as_stored(ordered, "batch", "seq", name)

    ordered, stored = there_and_back(x)
    assert (ordered == whole).all() and (stored == x).all()
    pieces = {shard.data.shape for shard in ordered.addressable_shards}
    assert all(piece[1] == 16 for piece in pieces)


def test_rows_in_order_need_a_name_for_each_axis():
    with single_device(), pytest.raises(UserError, match=r"\(8, 16, 4\) .* \('batch',"):
        in_order(jnp.zeros((8, 16, 4)), "batch", "seq")
