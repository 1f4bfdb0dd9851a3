"""A dense run's MLPs become experts, which compute at first what the dense model does.

pytest tests/run/test_upcycling.py
"""

import dataclasses

import jax
import numpy as np
import pytest

from jaxpar import finetune
from jaxpar.data.tokenizer import ByteTokenizer
from jaxpar.errors import UserError
from jaxpar.experts.block import MoEConfig
from jaxpar.experts.router import RouterConfig
from jaxpar.generate.logits import logits_of
from jaxpar.models import sizes
from jaxpar.nn.mlp import MLPConfig
from jaxpar.partition.layout import Layout
from jaxpar.run.adoption import transfer_of
from jaxpar.run.directory import RunDir
from jaxpar.train.state import create
from tests.run.test_origin import BASE, TUNE

DENSE = sizes.llama(
    vocab_size=260, n_layers=2, d_embed=16, n_heads=2, n_kv_heads=2, d_mlp=24,
    max_positions=16,
)  # fmt: skip
EXPERTS = MoEConfig(
    4, MLPConfig(24), RouterConfig(top_k=2, bias=True, bias_update_rate=0.01)
)
BASE = dataclasses.replace(BASE, model=DENSE)


def tuned(experts=EXPERTS, **fields):
    model = dataclasses.replace(DENSE, experts=experts)
    return dataclasses.replace(TUNE, model=model, upcycle=True, **fields)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    run = RunDir(tmp_path_factory.mktemp("dense") / "run")
    run.claim(BASE)
    ByteTokenizer().save(run.tokenizer_dir)
    placed = Layout.parse("data=1").on(jax.devices()[:1])
    checkpoints = run.checkpoints(read_only=False)
    checkpoints.save(1, create(BASE.recipe(), placed, seed=7), memory={})
    checkpoints.close()
    return run


@pytest.mark.parametrize("layout", ["data=2,expert=4", "fsdp=4,tensor=2"])
def test_an_upcycled_model_has_the_logits_of_its_source(source, layout):
    placed = Layout.parse(layout).on(jax.devices())
    state = finetune.start_from(tuned(), source, BASE, placed, 1)
    tokens = np.arange(96, dtype=np.int32).reshape(8, 12) * 2
    found = logits_of(tuned().recipe(), placed.for_generation(), state.params, tokens)
    dense = create(BASE.recipe(), placed := Layout.parse("data=8").on(jax.devices()),
                   seed=7).params  # fmt: skip
    want = logits_of(BASE.recipe(), placed, dense, tokens)
    np.testing.assert_allclose(found, want, atol=2e-5)


def test_routers_alone_stay_fresh():
    transfer = transfer_of(tuned(), BASE)
    assert set(transfer.fresh) == {"layers/mlp/w_router", "layers/mlp/router_bias"}
    assert not transfer.left_out


def test_experts_of_another_size_are_refused_with_both_shapes():
    narrow = dataclasses.replace(EXPERTS, expert=MLPConfig(12))
    with pytest.raises(UserError, match=r"2, 4, 16, 12.*2, 16, 24.*mlp.d_mlp"):
        transfer_of(tuned(narrow), BASE)


def test_experts_with_another_activation_are_refused():
    other = dataclasses.replace(EXPERTS, expert=MLPConfig(24, activation="gelu"))
    with pytest.raises(UserError, match="'silu', the experts 'gelu'"):
        transfer_of(tuned(other), BASE)


def test_shared_experts_stay_fresh_too():
    shared = dataclasses.replace(EXPERTS, n_shared_experts=1)
    fresh = transfer_of(tuned(shared), BASE).fresh
    assert "layers/mlp/shared/w_up" in fresh


def test_without_upcycling_experts_are_missing_there():
    with pytest.raises(UserError, match="misfitting"):
        transfer_of(dataclasses.replace(tuned(), upcycle=False), BASE)
