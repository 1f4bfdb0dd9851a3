"""The experiments of the proofs, each computed on one device once."""

import dataclasses
import functools

import jax
import pytest

from jaxpar.data.source import Text
from jaxpar.experiment import Pretrain
from jaxpar.experts.block import MoEConfig
from jaxpar.experts.router import RouterConfig
from jaxpar.models import sizes
from jaxpar.nn.mlp import MLPConfig
from jaxpar.nn.norm import RMSNorm
from jaxpar.optim.optimizer import AdamW, Muon
from jaxpar.train.objective import CausalLM
from jaxpar.verify import Reference
from jaxpar.verify.locate import NOTES
from jaxpar.verify.parts import END_TO_END, PARTS

T = 64
GPT = dataclasses.replace(
    sizes.gpt(vocab_size=120, n_layers=8, d_embed=16, n_heads=8, max_positions=T),
    dropout=0.1,
)
# Norms of heads of 2 numbers come near 0: a change of the parameters by one unit in the
# last place then changes gradients by 1e-12 even on one device. With 8 it is 2e-14.
HEAD_DIM = 8
LLAMA = dataclasses.replace(
    sizes.llama(
        vocab_size=120, n_layers=8, d_embed=16, n_heads=8, n_kv_heads=8, d_mlp=16,
        max_positions=T, qk_norm=RMSNorm(),
    ),
    remat="full",
)  # fmt: skip
LLAMA = dataclasses.replace(
    LLAMA, attention=dataclasses.replace(LLAMA.attention, head_dim=HEAD_DIM)
)


def run_of(model, *, batch_size=32, seq_len=T, microbatches=4, optim=AdamW):
    return Pretrain(
        model=model,
        data=Text("synthetic", seq_len=seq_len, batch_size=batch_size),
        optim=optim(peak_lr=1e-3, warmup_steps=2, decay_steps=10),
        objective=CausalLM(chunk=seq_len // 2),
        microbatches=microbatches,
        num_steps=10,
    )


def mixture(n_layers, **options):
    """A Llama whose MLPs are 8 experts and a shared one, with every option on."""
    model = sizes.llama(
        vocab_size=120, n_layers=n_layers, d_embed=16, n_heads=4, n_kv_heads=4,
        d_mlp=16, max_positions=32,
    )  # fmt: skip
    router = RouterConfig(
        top_k=2, balance_loss_coef=0.1, bias=True, bias_update_rate=0.01
    )
    experts = MoEConfig(8, MLPConfig(16), router, n_shared_experts=1, **options)
    attention = dataclasses.replace(model.attention, head_dim=HEAD_DIM)
    return dataclasses.replace(model, experts=experts, attention=attention)


EVERY_OTHER = dataclasses.replace(
    mixture(8, capacity_factor=1.0), expert_blocks=(False, True), dropout=0.1
)
USUAL = {"init", "loss", "gradient", "update", "state", "evaluation", "tokens"}
"""The kinds of leaves that a proof of any model has."""
RUNS = {
    "gpt": run_of(GPT),
    "llama": run_of(LLAMA, optim=Muon),
    "dropless": run_of(mixture(4), seq_len=32, optim=Muon),
    "slots": run_of(EVERY_OTHER, seq_len=32),
}


@pytest.fixture(scope="session", autouse=True)
def eight_devices():
    """Starts the backend, before a proof on fewer devices would simulate only those."""
    assert len(jax.devices()) == 8


def cases(forms, layouts, everyday):
    """Each form on each layout; all but those of every day are slow."""
    for form in forms:
        for text in layouts:
            marks = () if (form, text) in everyday else pytest.mark.slow
            yield pytest.param(form, text, marks=marks, id=f"{form}-{text}")


@functools.cache
def reference_of(form: str) -> Reference:
    """One device's numbers, computed before the first layout is compared with them."""
    reference = Reference(RUNS[form])
    reference.compile()
    for part in (*reference.parts, END_TO_END):
        reference.wanted(part)
    return reference


def before_bugs(run, parts=PARTS[:3]) -> Reference:
    """One device's numbers up to the gradients, computed before a bug is planted."""
    reference = Reference(run, parts=parts)
    for part in (*reference.parts, NOTES):
        reference.wanted(part)
    return reference


@pytest.fixture
def reference(form):
    return reference_of(form)


@pytest.fixture(scope="session")
def small():
    """A reference with few rows, of a model with every part that gets a bug."""
    model = dataclasses.replace(
        sizes.llama(
            vocab_size=120, n_layers=3, d_embed=16, n_heads=4, n_kv_heads=4, d_mlp=16,
            max_positions=24,
        ),
        dropout=0.1,
    )  # fmt: skip
    return before_bugs(run_of(model, batch_size=16, seq_len=16, microbatches=2))
