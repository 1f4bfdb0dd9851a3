"""A value that makes no sense is refused with what is allowed, before anything starts.

pytest tests/test_values.py
"""

import dataclasses

import pytest

from jaxpar.cli import main
from jaxpar.data.tokenizer import BPE
from jaxpar.errors import UserError
from jaxpar.models import sizes
from jaxpar.train.objective import CausalLM
from tests.run.test_resumed_metrics import RUN

LLAMA = RUN.model
POSITIVE = [
    *((LLAMA, name) for name in (
        "vocab_size", "n_layers", "d_embed", "max_positions", "vocab_multiple",
    )),
    *((LLAMA.attention, name) for name in ("n_heads", "n_kv_heads", "head_dim")),
    (LLAMA.mlp, "d_mlp"),
    (CausalLM(), "chunk"),
    (BPE(300), "train_bytes"),
    *((RUN, name) for name in (
        "num_steps", "microbatches", "eval_every", "save_every", "log_every", "keep",
        "max_skipped",
    )),
]  # fmt: skip


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    ("config", "name"), POSITIVE, ids=[name for _, name in POSITIVE]
)
def test_a_size_or_count_below_1_is_refused(config, name, value):
    with pytest.raises(UserError, match=f"{name}={value}; it must be 1 or more"):
        dataclasses.replace(config, **{name: value})


@pytest.mark.parametrize("dropout", [1.5, 1.0, -0.5, float("nan")])
def test_a_dropout_that_is_no_probability_is_refused(dropout):
    with pytest.raises(UserError, match="dropout=.* at least 0 and below 1"):
        dataclasses.replace(LLAMA, dropout=dropout)
    assert dataclasses.replace(LLAMA, dropout=0.99).dropout == 0.99


@pytest.mark.parametrize("seed", [-1, 2**32, 2**64])
def test_a_seed_that_would_be_anothers_is_refused(seed):
    with pytest.raises(UserError, match=f"seed={seed} .* below 2\\*\\*32"):
        dataclasses.replace(RUN, seed=seed)
    assert dataclasses.replace(RUN, seed=2**32 - 1).seed == 2**32 - 1


@pytest.mark.parametrize("windows", [(), (-1,), (8, -8)])
def test_windows_that_are_none_are_refused(windows):
    with pytest.raises(UserError, match="windows="):
        dataclasses.replace(LLAMA, windows=windows)


def test_a_policy_that_is_none_is_refused():
    with pytest.raises(UserError, match='on_nonfinite=.*"stop" or "skip"'):
        dataclasses.replace(RUN, on_nonfinite="warn")
    with pytest.raises(UserError, match='on_save_error=.*"stop" or "go_on"'):
        dataclasses.replace(RUN, on_save_error="skip")
    with pytest.raises(UserError, match="check_replicas=-1"):
        dataclasses.replace(RUN, check_replicas=-1)


@pytest.mark.parametrize("n_heads", [0, -2])
def test_a_form_of_any_size_names_the_size_that_is_wrong(n_heads):
    with pytest.raises(UserError, match=f"n_heads={n_heads}; it must"):
        sizes.gpt(
            vocab_size=260, n_layers=1, d_embed=8, n_heads=n_heads, max_positions=8
        )


@pytest.mark.parametrize(
    "flags",
    [
        ("--model.dropout", "1.5"),
        ("--keep", "0"),
        ("--grace", "-1"),
        ("--grace", "nan"),
        ("--grace", "inf"),
        ("--watchdog", "soon"),
        ("--watchdog", "auto,compil=3"),
        ("--seed", str(2**32)),
        ("--model.attention.n-kv-heads", "0"),
        ("--model.mlp.d-mlp", "0"),
        ("--objective.chunk", "0"),
    ],
    ids=lambda flags: flags[0],
)
def test_the_command_line_ends_with_status_2_and_one_line(flags, tmp_path, capsys):
    command = [
        "pretrain",
        "experiments/quickstart.py",
        "--run-dir",
        str(tmp_path / "r"),
    ]
    assert main([*command, *flags]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert "must be" in said[-1] or "at least" in said[-1]
    assert not (tmp_path / "r").exists()
