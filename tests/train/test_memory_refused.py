"""Memory that is refused to a device ends with a message, wherever it is noticed.

pytest -m "slow or not slow" tests/train/test_memory_refused.py
"""

import os
import subprocess
import sys

import pytest

# Where some devices are refused their parts, JAX's arrays of the others look complete.
CODE = """
import dataclasses, resource, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from one_process import experiment
from jaxpar.models import sizes
from jaxpar.train.state import create
from jaxpar.partition.layout import Layout
model = sizes.llama(
    vocab_size=260, n_layers=6, d_embed=1024, n_heads=8, n_kv_heads=8, d_mlp=4096,
    max_positions=512,
)
big = dataclasses.replace(experiment, model=model, layout=Layout.parse("fsdp=8"))
placed = big.layout.on(jax.devices())
with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
limit = now + int(sys.argv[1]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    int(create(big.recipe(), placed, seed=0).step)
except jax.errors.JaxRuntimeError as error:
    sys.exit(str(error))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("megabytes", [300, 700, 900])
def test_memory_refused_at_the_start_neither_hangs_nor_passes_for_done(megabytes):
    ended = subprocess.run(
        [sys.executable, "-c", CODE, str(megabytes)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["tests", *sys.path])},
    )
    # Which refusal comes first is chance: of an array, or of a thread of XLA's own.
    assert ended.returncode != 0
