"""Eight simulated devices, strict shapes, and a cache of the tests' own."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Prepared data and compiled steps of the tests stay in the tests' folder."""
    previous = os.environ.get("JAXPAR_CACHE")
    os.environ["JAXPAR_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if previous is None:
        del os.environ["JAXPAR_CACHE"]
    else:
        os.environ["JAXPAR_CACHE"] = previous
