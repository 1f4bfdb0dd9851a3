"""A lack of memory is one line: what each device holds, and what needs less.

pytest tests/train/test_out_of_memory.py
"""

import jax
import jax.numpy as jnp
import pytest

from jaxpar.errors import OutOfMemory
from jaxpar.models import sizes
from jaxpar.optim.optimizer import AdamW
from jaxpar.partition.layout import Layout
from jaxpar.train.objective import CausalLM
from jaxpar.train.out_of_memory import bytes_on_device, explained
from jaxpar.train.state import Recipe

MODEL = sizes.llama(
    vocab_size=260, n_layers=1, d_embed=16, n_heads=4, n_kv_heads=4, d_mlp=32,
    max_positions=64,
)  # fmt: skip


def target(layout="fsdp=4,tensor=2"):
    recipe = Recipe(MODEL, CausalLM(), AdamW(1e-3, warmup_steps=0, decay_steps=1))
    return recipe.target(Layout.parse(layout).on(jax.devices()))


def test_memory_that_is_refused_ends_with_what_each_device_holds():
    state = target()
    with pytest.raises(OutOfMemory, match="parameters .*, the optimizer's") as found:
        with explained(state, rows=8, microbatches=2):
            # More than there is: refused by the backend itself.
            jax.jit(lambda: jnp.zeros((2**24, 2**24)), device=jax.devices()[0])()
    for words in ("RESOURCE_EXHAUSTED", "8 rows in 2 microbatches", "--microbatches"):
        assert words in str(found.value)


def test_bytes_are_those_of_one_device():
    whole, eighth = target("data=8"), target("fsdp=8")
    n_bytes = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(whole.params))
    assert bytes_on_device(whole.params) == n_bytes
    # What eight does not divide is on every device.
    assert n_bytes / 8 <= bytes_on_device(eighth.params) < n_bytes / 4


def test_other_errors_stay_what_they_are():
    with pytest.raises(jax.errors.JaxRuntimeError, match="disk"):
        with explained(target(), rows=8, microbatches=1):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: disk full")
