"""Eight CPU devices for every test, one compile cache, and the gates --slow and CELLSEG_DATA."""

import atexit
import os
import pathlib
import shutil
import tempfile

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)  # must run before the first array exists
# Many tests train the same tiny network: it is compiled once per session, in the tests' child
# processes and in the workers of pytest-xdist too, which inherit the folder. It is keyed by the
# compiled program itself, so that no result of other code can be reused.
CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
if not CACHE:
    CACHE = tempfile.mkdtemp(prefix="cellseg_jax_tests_")
    atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's worker options are absl flags


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="slow; run with --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
    """The folder of real images; tests that need it are skipped where it is not set."""
    root = os.environ.get("CELLSEG_DATA", "")
    if not root:
        pytest.skip("CELLSEG_DATA is not set: no real images on this machine")
    return pathlib.Path(root)


@pytest.fixture
def float64():
    """float64 in every thread: orbax restores in threads of its own."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
