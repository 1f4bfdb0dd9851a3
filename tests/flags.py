"""How tests compile that prove no equal bits."""

import jax

# XLA_FLAGS that compile fast.
FAST = "--xla_backend_optimization_level=0"
if jax.__version_info__ < (0, 11):
    # Twice as fast again; XLA aborts on a flag that it knows no longer.
    FAST += " --xla_cpu_use_fusion_emitters=false"
