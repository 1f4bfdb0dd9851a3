"""Eight simulated devices, strict shapes, and a cache of the tests' own.

Everyday tests and proofs compile fast rather than for speed. Laws on equal bits hold
for the code that people run: they are marked slow, and `pytest -m slow` compiles as
usual.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from tests.flags import FAST

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config):
    """Chooses how hard XLA tries, before any backend starts."""
    proofs = all("tests/verify" in path for path in config.args)
    if config.getoption("markexpr") == "not slow" or proofs:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST}"


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
