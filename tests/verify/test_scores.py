"""Capped and biased scores are those of one device on every layout."""

import dataclasses

import pytest

from jaxpar.models import sizes
from jaxpar.models.decoder import DecoderConfig
from jaxpar.nn.score_bias import Alibi
from jaxpar.verify.prove import verify
from tests.verify.conftest import run_of

PLAIN = sizes.llama(
    vocab_size=96, n_layers=2, d_embed=16, n_heads=8, n_kv_heads=4, d_mlp=16,
    max_positions=32,
)  # fmt: skip
ALIBI: DecoderConfig = dataclasses.replace(
    PLAIN,
    attention=dataclasses.replace(
        PLAIN.attention,
        head_dim=8,
        rope_theta=0.0,
        score_bias=Alibi(),
        soft_cap=2.0,
    ),
    windows=(0, 9),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout", ["tensor=2,ulysses=2", "data=2,ring=4", "fsdp=2,context=2,tensor=2+sp"]
)
def test_capped_and_biased_scores_are_those_of_one_device(layout):
    run = run_of(ALIBI, batch_size=8, seq_len=32, microbatches=1)
    proof = verify(run, layout, full=True)
    assert proof.passed, f"\n{proof}"
