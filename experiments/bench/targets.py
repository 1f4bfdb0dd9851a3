"""Devices that are not here, for which a step can be compiled all the same.

    JAX_PLATFORMS=cpu python -m experiments.bench.targets data=8 fsdp=4,tensor=2

NVIDIA needs the plugin of the extra `plan-cuda`, TPUs that of `plan-tpu`; each of them
changes what a plain `import jax` starts, so give them an environment of their own.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jaxpar.partition.devices import CUDA_PLUGINS
from jaxpar.partition.layout import Layout, Placed
from jaxpar.train.state import Recipe

H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  threads_per_warp: 32  threads_per_block_limit: 1024  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000  device_memory_size: 84978434048
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
"""XLA's GpuTargetConfigProto of an H100 (SXM), as its driver would describe it."""

CUDA_MISSING = (
    "needs JAX's CUDA plugin, not a GPU: in an environment of its own, "
    'pip install -e ".[plan-cuda]", then run with JAX_PLATFORMS=cpu'
)
TPU_MISSING = (
    "needs libtpu, not a TPU: in an environment of its own, "
    'pip install -e ".[plan-tpu]", then run with JAX_PLATFORMS=cpu'
)


def has_cuda() -> bool:
    """Whether programs for NVIDIA devices can be compiled here."""
    return any(map(importlib.util.find_spec, CUDA_PLUGINS))


def has_tpu() -> bool:
    """Whether programs for TPUs can be compiled here."""
    return importlib.util.find_spec("libtpu") is not None


def h100s(n: int) -> list[Any]:
    """n H100s, eight to a host, that exist for the compiler alone."""
    # Choosing among algorithms by timing them would need the device.
    off = "--xla_gpu_autotune_level=0"
    if off not in (flags := os.environ.get("XLA_FLAGS", "")):
        os.environ["XLA_FLAGS"] = f"{flags} {off}".strip()
    each = min(n, 8)
    found = topologies.get_topology_desc(
        platform="cuda",
        topology_name=f"h100_{n}",
        target_config=H100,
        topology=f"1x{n // each}x{each}",
    )
    return list(found.devices)


def tpus(name: str = "v5p:2x2x1") -> list[Any]:
    """The chips of a TPU slice such as v5p:2x2x1, for the compiler alone."""
    kind = name.partition(":")[0]
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{kind}-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    return list(topologies.get_topology_desc(name, "tpu").devices)


def abstract_batch(placed: Placed, B: int, T: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch of a decoder, placed."""
    sharding = placed.sharding(("batch", "seq"))
    field = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=sharding)
    names = ("tokens", "targets", "positions", "segments")
    weights = jax.ShapeDtypeStruct((B, T), jnp.float32, sharding=sharding)
    return {**dict.fromkeys(names, field), "weights": weights}


def compiled_step(
    recipe: Recipe, placed: Placed, B: int, T: int, **options: Any
) -> jax.stages.Compiled:
    """The training step, compiled for the devices where `placed` puts it.

    options: those of make_train_step, such as microbatches.
    """
    # Here, so that steps which change at the same time do not stop this module.
    from jaxpar.train.step import make_train_step

    step = make_train_step(recipe, placed, **options)
    batch = abstract_batch(placed, B, T)
    return step.lower(recipe.target(placed), batch).compile()


def main(texts: Sequence[str]) -> None:
    """Prints the temporaries of a 124M model's step, 8 rows of 1,024 a device."""
    from jaxpar.models import sizes
    from jaxpar.optim.optimizer import AdamW
    from jaxpar.partition.precision import Precision
    from jaxpar.train.objective import CausalLM

    if not has_cuda():
        sys.exit(f"This {CUDA_MISSING}.")
    optim = AdamW(1e-3, warmup_steps=1, decay_steps=9)
    recipe = Recipe(sizes.GPT_124M, CausalLM(), optim, Precision(compute="bfloat16"))
    for text in texts:
        layout = Layout.parse(text)
        placed = layout.on(h100s(layout.n_devices))
        memory = compiled_step(recipe, placed, 8 * layout.n_devices, 1_024)
        found: Any = memory.memory_analysis()
        print(f"{text}: {found.temp_size_in_bytes / 2**20:,.0f} MiB of temporaries")


if __name__ == "__main__":
    main(sys.argv[1:])
