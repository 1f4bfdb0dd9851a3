"""Eight simulated devices, checked shapes, and a cache of the tests' own.

XLA compiles fast here rather than fast code. Laws on equal bits hold for the code that
people run: they are marked `exact`, and need `pytest --full-compile`.
"""

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

# Shapes are checked in each call, before anything of jaxpar is imported.
CHECKED = ["jaxpar.nn", "jaxpar.models", "jaxpar.train", "jaxpar.generate"]
install_import_hook(CHECKED, "beartype.beartype")

from tests.faults import tests_of  # noqa: E402
from tests.flags import FAST  # noqa: E402

# What older versions wrote is read, never imported.
collect_ignore = ["formats"]

# Laws do not depend on how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_addoption(parser):
    parser.addoption(
        "--full-compile",
        action="store_true",
        help="compile as people's runs do, which laws on equal bits need",
    )
    parser.addoption(
        "--faults",
        choices=("P", "N"),
        help="run the tests of this tier in tests/FAULTS.md, slow ones too",
    )


def pytest_configure(config):
    """Chooses how hard XLA optimises, before any backend starts."""
    if config.getoption("--faults"):
        config.option.markexpr = ""
    if not config.getoption("--full-compile"):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST}"


def pytest_collection_modifyitems(config, items):
    """Chooses the tests; refuses to judge bits that were compiled as nobody does."""
    tier = config.getoption("--faults")
    if tier:
        named = {f"tests/{name}" for name in tests_of(tier)}
        chosen = [item for item in items if item.nodeid.partition("[")[0] in named]
        config.hook.pytest_deselected(items=[i for i in items if i not in chosen])
        items[:] = chosen
    else:
        nightly = [item for item in items if item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if item not in nightly]
    exact = [item.nodeid for item in items if item.get_closest_marker("exact")]
    chosen = tier or "slow" in config.getoption("markexpr").replace("not slow", "")
    if exact and chosen and not config.getoption("--full-compile"):
        raise pytest.UsageError(f"{exact[0]} compares bits: add --full-compile")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Prepared data and compiled steps of the tests stay in the tests' folder."""
    previous = os.environ.get("JAXPAR_CACHE")
    cache = tmp_path_factory.mktemp("cache")
    os.environ["JAXPAR_CACHE"] = str(cache)
    # Where the command line keeps them, too: no program is compiled twice.
    jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    yield
    if previous is None:
        del os.environ["JAXPAR_CACHE"]
    else:
        os.environ["JAXPAR_CACHE"] = previous


@pytest.fixture
def garbage_is_collected():
    """What a test leaves is collected at its end, and not in a later one."""
    yield
    gc.collect()
