"""Eight CPU devices for every test, and the two gates: --slow and CELLSEG_DATA."""

import os
import pathlib

import jax
import pytest
from absl import flags

jax.config.update("jax_num_cpu_devices", 8)  # must run before the first array exists
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
