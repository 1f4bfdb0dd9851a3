"""What is wrong with a model is said before compiling, with its class."""

import dataclasses

import jax.numpy as jnp
import pytest
from flax import nnx

from jaxpar.errors import UserError
from jaxpar.models.base import Aux, ModelConfig
from jaxpar.models.contract import checked_model, require_frozen
from jaxpar.nn.linear import dense
from jaxpar.nn.param import fan_in, normal, param
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.partition.precision import Precision
from jaxpar.train.objective import CausalLM
from jaxpar.train.state import Recipe


class Good(nnx.Module):
    """The least that a model is: a table, and the same table the other way round."""

    def __init__(self, config, rngs):
        V, D = config.vocab_size, config.d_embed
        self.embedding = param(rngs, normal(1.0), vocab=V, embed=D)
        self.w_out = param(rngs, fan_in("embed"), embed=D, vocab=V)

    def __call__(self, tokens, where, keys=None):
        return self.embedding[...][tokens], Aux()

    def unembed(self, x):
        return dense("BTD,DV->BTV", x, self.w_out)


@dataclasses.dataclass(frozen=True)
class Config(ModelConfig):
    vocab_size: int = 24
    max_positions: int = 16
    d_embed: int = 8
    kind: type = Good

    def build(self, rngs):
        return self.kind(self, rngs)


class Alone(Good):
    def __call__(self, tokens, where, keys=None):
        return super().__call__(tokens, where)[0]


class TupleOfOne(Good):
    def __call__(self, tokens, where, keys=None):
        return (super().__call__(tokens, where)[0],)


class Pooled(Good):
    def __call__(self, tokens, where, keys=None):
        return super().__call__(tokens, where)[0].mean(1), Aux()


class Whole(Good):
    def __call__(self, tokens, where, keys=None):
        return super().__call__(tokens, where)[0].astype(jnp.int32), Aux()


class TwoArguments(Good):
    def __call__(self, tokens, where):
        return super().__call__(tokens, where)


class Misfit(Good):
    def unembed(self, x):
        return dense("BTD,DV->BTV", x[..., :3], self.w_out)


class Narrow(Good):
    def unembed(self, x):
        return super().unembed(x)[..., :20]


class Dumb(Good):
    unembed = None


class Misspelled(Good):
    def __init__(self, config, rngs):
        self.w = param(rngs, normal(1.0), embd=3)


class NoAxis(Good):
    def __init__(self, config, rngs):
        self.w = param(rngs, fan_in("embd"), embed=3, mlp=2)


class Unnamed(Good):
    def __init__(self, config, rngs):
        super().__init__(config, rngs)
        self.raw = nnx.Param(jnp.zeros(3))


class Counting(Good):
    def __init__(self, config, rngs):
        super().__init__(config, rngs)
        self.count = nnx.Variable(jnp.zeros(3))


WRONG = {
    Alone: r"^Alone.__call__ returns float32 \[2, 16, 8\]; it must return a pair",
    TupleOfOne: r"^TupleOfOne.__call__ returns a tuple of 1 \(float32 \[2, 16, 8\]\);",
    Pooled: r"^Pooled.__call__ of tokens \[2, 16\] returns float32 \[2, 8\] first;",
    Whole: r"^Whole.__call__ .* int32 \[2, 16, 8\] first; .* floating-point",
    TwoArguments: r"^TwoArguments.__call__ of tokens .* keys=None: TypeError: ",
    Misfit: r"^Misfit.unembed of .* TypeError: .* \(test_contract.py, line \d+: ",
    Narrow: r"^Narrow.unembed .* returns float32 \[2, 16, 20\]; .* \[2, 16, 24\]",
    Dumb: r"^Dumb has no method unembed, which is in jaxpar.models.base.Model",
    Misspelled: r"^Config.build: Unknown axis 'embd'; did you mean 'embed'\?.* embd_\.",
    NoAxis: r"^Config.build: fan_in\('embd'\) names no axis .* has embed, mlp\.",
    Unnamed: r"^Unnamed: parameter raw has no axis names",
    Counting: r"^Counting has state besides parameters: \['count'\]",
}


def recipe_of(config):
    optim = AdamW(peak_lr=1e-3, warmup_steps=1, decay_steps=10)
    return Recipe(config, CausalLM(), optim)


def test_a_model_that_keeps_the_contract_passes():
    assert recipe_of(Config()).abstract(Layout.parse("fsdp=4,tensor=2"))


@pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.__name__)
def test_a_model_that_breaks_the_contract_is_refused_with_its_class(kind):
    with pytest.raises(UserError, match=WRONG[kind]):
        recipe_of(Config(kind=kind)).abstract(Layout.parse("data=1"))


def complaint(config):
    with pytest.raises(UserError) as error:
        checked_model(config, Precision())
    return str(error.value)


def test_a_configuration_is_a_frozen_dataclass_with_both_limits():
    class Plain(Config):
        """Its decorator was forgotten, so that this is no field."""

        n_layers: int = 3

    class Smaller(Config):
        """A dataclass by what it inherits, with no field of its own."""

    class Bare(ModelConfig):
        def build(self, rngs):
            return Good(Config(), rngs)

    @dataclasses.dataclass(frozen=True)
    class Stranger:
        vocab_size: int = 24

    @dataclasses.dataclass
    class Mutable(ModelConfig):
        def build(self, rngs):
            return Good(Config(), rngs)

    @dataclasses.dataclass(frozen=True)
    class NoLimit(ModelConfig):
        vocab_size: int = 24

        def build(self, rngs):
            return Good(Config(), rngs)

    @dataclasses.dataclass(frozen=True)
    class NoModel(Config):
        def build(self, rngs):
            pass

    begins, above = (
        "is no model's configuration:",
        "@dataclasses.dataclass(frozen=True)",
    )
    assert complaint(Plain()) == (
        f"Plain {begins} it must have {above} above the class, without which it has no "
        "field n_layers."
    )
    assert complaint(Bare()) == f"Bare {begins} it must have {above} above the class."
    with pytest.raises(UserError, match=f"Stranger {begins} it must be derived"):
        require_frozen(Stranger())
    assert complaint(NoLimit()).startswith("NoLimit has max_positions=None; it needs")
    assert complaint(Config(vocab_size=0)).startswith("Config has vocab_size=0;")
    assert complaint(NoModel()).startswith("NoModel.build returns NoneType; it must")
    assert complaint(Mutable()).endswith(
        "@dataclasses.dataclass must have frozen=True."
    )
    assert checked_model(Smaller(), Precision())


def test_a_promised_cache_is_asked_for():
    @dataclasses.dataclass(frozen=True)
    class Promised(Config):
        has_cache = True

    assert complaint(Promised()) == (
        "Good has no method cache, which is in jaxpar.models.base.CachingModel."
    )


def test_a_configuration_that_has_no_hash_is_checked_too():
    @dataclasses.dataclass(frozen=True)
    class Listed(Config):
        kinds: list = dataclasses.field(default_factory=list)

    assert checked_model(Listed(), Precision())
    assert complaint(Listed(kind=Narrow)).startswith("Narrow.unembed")


def test_an_axis_of_ones_own_is_split_by_no_layout():
    layout = Layout.parse("fsdp=4,tensor=2")
    for which in ("stored", "optimizer", "computed"):
        assert layout.split(("embed_", "state_"), which) == ((), ())
    assert layout.split(("embed", "embed_"), "stored") == (("data",), ())
