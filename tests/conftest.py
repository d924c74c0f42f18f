"""Eight CPU devices for every test, caches of their own, and the gates --slow and CELLSEG_DATA."""

import atexit
import os
import pathlib
import shutil
import tempfile

import helpers_shapes
import helpers_tiers
import jax
import pytest
from absl import flags
from xdist.scheduler import LoadFileScheduling

ROOT = pathlib.Path(__file__).resolve().parent.parent

helpers_shapes.install()  # must run before the package is imported

from cellseg_jax import cli  # noqa: E402

cli.set_xla_flags()  # as commands do

jax.config.update("jax_num_cpu_devices", 8)  # must run before the first array exists
# Many tests train the same tiny network: it is compiled once per session, in the tests' child
# processes and in the workers of pytest-xdist too, which inherit the folder. It is keyed by the
# compiled program itself, so that no result of other code can be reused.
CACHE = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
if not CACHE:
    CACHE = tempfile.mkdtemp(prefix="cellseg_jax_tests_")
    atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ[cli.PROGRAMS_VARIABLE] = "off"  # step.kept would compile again what is in that folder
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's worker options are absl flags


# A file runs in one worker. These take longest and are begun first, so that no worker waits for
# another that has just begun one of them.
LONGEST = ("test_benchmarks.py", "studies/test_smoke.py", "train/test_devices.py",
           "faults/test_faults.py", "faults/test_fuzz.py", "train/test_slots.py", "test_study.py",
           "train/test_train.py", "step/test_step.py", "studies/test_work_queue.py",
           "parity/test_models.py", "targets/test_distance.py", "test_main.py",
           "train/test_from_arrays.py", "train/test_processes.py", "models/test_models.py",
           "test_analyze.py", "inference/test_predictor.py", "planning/test_plan.py",
           "interop/test_exported_programs.py", "train/test_memory.py", "test_launch.py",
           "models/test_learning.py", "test_augment.py", "test_predict.py")


# Their slow tests share nothing: each may run in another worker.
APART = ("faults/test_faults.py", "faults/test_fuzz.py", "studies/test_smoke.py",
         "test_benchmarks.py")


def pytest_xdist_make_scheduler(config, log):
    """A file in one worker, as --dist loadfile has it, but those of APART test by test."""
    if config.getvalue("dist") != "loadfile" or not config.getoption("--slow"):
        return None
    scheduler = LoadFileScheduling(config, log)
    whole_file, apart = scheduler._split_scope, {f"tests/{name}" for name in APART}
    scheduler._split_scope = lambda test: test if whole_file(test) in apart else whole_file(test)
    return scheduler


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true",
                     help="run a part of the tests marked slow and of those marked weekly too")
    parts = map(str, range(helpers_tiers.PARTS))
    parser.addoption("--part", default="commit", choices=["commit", "all", *parts],
                     help="with --slow, which of them: the part of the commit (the number of "
                     "commits modulo that of parts; all without git history), all, or the part "
                     "of this number")


def pytest_xdist_auto_num_workers(config):
    """One worker per core for the whole suite; none, which starts sooner, for files named."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    return 0 if named else min(os.cpu_count() or 1, 8)


def part(config):
    """The part that pytest runs now; the workers take the controller's."""
    inputs = getattr(config, "workerinput", {})
    if "part" not in inputs:
        return helpers_tiers.chosen_part(config.getoption("--part"), ROOT)
    return inputs["part"]


def pytest_configure_node(node):
    node.workerinput["part"] = part(node.config)


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--slow"):
        number = part(config)
        which = "all" if number is None else f"part {number} of 0 to {helpers_tiers.PARTS - 1}"
        terminalreporter.write_line(f"slow and weekly tests: {which}")


def pytest_collection_modifyitems(config, items):
    slow, number = config.getoption("--slow"), part(config) if config.getoption("--slow") else 0
    first = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(item.path, len(first)))
    for item in items:
        if "/parity/" in item.nodeid:
            item.add_marker("parity")
        marks = {mark.name for mark in item.iter_markers()}
        reason = helpers_tiers.reason_to_skip(marks, item.nodeid, slow=slow, part=number)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test reads or fills the user's cache of decoded images; child processes inherit this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


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
