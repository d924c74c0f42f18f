"""Damage to checkpoints, and errors of the machine while they are read."""

import atexit
import contextlib
import functools
import json
import os
import pathlib
import resource
import shutil
import tempfile

import jax
import numpy as np
from faults.table import Fault
from helpers import tiny_config

from cellseg_jax import train
from cellseg_jax.errors import InputError
from cellseg_jax.files import checksums
from cellseg_jax.runs import checkpoint
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.step.state import init_state


@functools.cache
def state(seed=0):
    """The state of a tiny network at step 0."""
    config = tiny_config(seed=seed)
    spec = make_spec([config])
    return jax.jit(lambda values: init_state(spec, values, (32, 32, 4)))(
        traced_values(config, spec))


@functools.cache
def saved():
    """A folder with two checkpoints, the best at step 1 and the last at step 2."""
    place = pathlib.Path(tempfile.mkdtemp(prefix="cellseg_jax_tests_"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    saves = checkpoint.Checkpoints(place / "checkpoints")
    saves.save(state(0), 1, score=0.5, judgement={"best": 0.5})
    saves.save(state(1), 2, judgement={"best": 0.5})
    saves.close()
    return place


def copy_of_saved(place, *, checksummed=True):
    """The folder's copy in `place`; without checksums as it was written before there were any."""
    directory = shutil.copytree(saved(), place / "run") / "checkpoints"
    for step in () if checksummed else (1, 2):
        (directory / str(step) / checksums.FILE).unlink()
        file = directory / str(step) / checkpoint.METADATA
        content = json.loads(file.read_text())
        del content["custom_metadata"]["score"], content["custom_metadata"]["shapes"]
        file.write_text(json.dumps(content))
    return directory


def restored(directory):
    """(step that training goes on from, lines that it logs)."""
    lines, device = [], jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with contextlib.closing(checkpoint.Checkpoints(directory)) as saves:
        found = saves.restore_latest(checkpoint.abstract(state(), device), lines.append)
    for step in (1, 2):
        same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), found and found[0].params,
                            state(step - 1).params)
        if found and all(jax.tree.leaves(same)):
            return step, lines
    return None, lines


def loaded(directory):
    """The step whose weights prediction takes, where the last is asked for."""
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    part = {"params": checkpoint.abstract(state().params, device)}
    steps = checkpoint.saved_steps(directory)
    step, found = checkpoint.load_first(directory, (steps["last"], steps["best"]), part)
    jax.tree.map(np.testing.assert_array_equal, found["params"], state(step - 1).params)
    return step


def assert_noticed(directory, file, also_by_prediction=True):
    """Step 2 is named as damaged by one line and step 1 is used."""
    if also_by_prediction:
        assert loaded(directory) == 1 and (directory / "2").is_dir()
    step, lines = restored(directory)
    assert step == 1 and len(lines) == 1 and "\n" not in lines[0], lines
    assert str(file) in lines[0] and "is damaged" in lines[0], lines
    assert (directory.parent / "damaged_checkpoint_2").is_dir()


def flip(file, place):
    """Flip one bit, counted from the begin of the file."""
    content = bytearray(file.read_bytes())
    content[place // 8] ^= 1 << place % 8
    file.write_bytes(content)


def flipped_parameters(place, number):
    directory, rng = copy_of_saved(place), np.random.default_rng(number)
    files = sorted(f for f in (directory / "2" / "state").rglob("d/*"))
    sizes = [f.stat().st_size for f in files]
    file = files[rng.choice(len(files), p=np.divide(sizes, sum(sizes)))]
    flip(file, int(rng.integers(8 * file.stat().st_size)))
    assert_noticed(directory, file, also_by_prediction=number % 6 == 0)


def flipped_rest(place, number):
    directory, rng = copy_of_saved(place), np.random.default_rng(number)
    files = sorted(f for f in (directory / "2").rglob("*") if f.is_file() and f.parent.name != "d"
                   and f.stat().st_size and f.name != checksums.FILE)
    file = files[number % len(files)]
    flip(file, int(rng.integers(8 * file.stat().st_size)))
    assert_noticed(directory, file)


def flipped_checksums(place, number):
    directory, rng = copy_of_saved(place), np.random.default_rng(number)
    file = directory / "2" / checksums.FILE
    before = json.loads(file.read_text())
    flip(file, int(rng.integers(8 * file.stat().st_size)))
    with contextlib.suppress(ValueError):
        if json.loads(file.read_bytes()) == before:  # a blank became a tab, say
            return
    assert loaded(directory) == 1 and restored(directory)[0] == 1


def missing_file(place, number):
    directory = copy_of_saved(place)
    files = sorted(f for f in (directory / "2").rglob("*") if f.is_file())
    files[number % len(files)].unlink()
    assert loaded(directory) == 1 and restored(directory)[0] == 1


def cut_old(place, number):
    directory, rng = copy_of_saved(place, checksummed=False), np.random.default_rng(number)
    for file in (directory / "2" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 200:
            os.truncate(file, int(rng.integers(file.stat().st_size // 2)))
    assert loaded(directory) == 1
    step, lines = restored(directory)
    assert step == 1 and len(lines) == 1 and (directory.parent / "damaged_checkpoint_2").is_dir()


def old_checkpoint(place, number):
    directory = copy_of_saved(place, checksummed=False)
    assert checkpoint.saved_steps(directory) == {"last": 2, "best": 1}
    assert loaded(directory) == 2 and restored(directory) == (2, [])


def damaged_metrics(place, number):
    content = (b"", b"{", b"null", b"\xff" * 8, b'{"score": 0.9}')[number % 5]
    directory = copy_of_saved(place, checksummed=number < 5)
    old_and_plausible = number == 9  # nothing protects it
    (directory / "1" / checkpoint.SCORE).write_bytes(content)
    assert checkpoint.saved_steps(directory) == {"last": 2, "best": 1}
    assert loaded(directory) == 2 and restored(directory) == (2, [])
    if not old_and_plausible:
        assert checkpoint._read(directory / "1", checkpoint._score) == 0.5


def too_few_descriptors(place, number):
    directory = copy_of_saved(place, checksummed=number % 2 == 0)
    before = sorted(directory.parent.rglob("*"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + number // 2, limits[1]))
    try:
        assert restored(directory)[0] == 2
    except InputError as error:
        assert "cannot be read" in str(error) and "\n" not in str(error)
    except OSError as error:  # before anything is read
        assert error.errno == 24
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert sorted(directory.parent.rglob("*")) == before
    assert restored(directory) == (2, [])


@functools.cache
def trained():
    """The folder of a run that has ended."""
    place = pathlib.Path(tempfile.mkdtemp(prefix="cellseg_jax_tests_"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    assert train.train([tiny_config(train__epochs=1)], [place / "run"])[0].status == "done"
    return place / "run"


def deleted(place, number):
    run = shutil.copytree(trained(), place / "run")
    epochs = 1 + number % 2  # as it was, and made longer
    if number < 4:
        (run / "result.json").unlink() if number > 1 else None
        shutil.rmtree(run / "checkpoints")
    else:
        for step in (run / "checkpoints").iterdir():
            shutil.rmtree(step)
    try:
        train.train([tiny_config(train__epochs=epochs)], [run])
    except InputError as error:
        assert "checkpoints" in str(error) and "restore" in str(error)
    else:
        raise AssertionError("it began again")


FAULTS = (
    Fault("a flipped bit in the parameter data", "load",
          "one line names the file, the checkpoint before is used", flipped_parameters, 60, 6),
    Fault("a flipped bit in another file of a checkpoint", "load",
          "one line names the file, the checkpoint before is used", flipped_rest, 20, 1),
    Fault("a flipped bit in the checksums", "load", "the checkpoint before is used",
          flipped_checksums, 20),
    Fault("a missing file of a checkpoint", "load", "the checkpoint before is used",
          missing_file, 16),
    Fault("a cut checkpoint without checksums", "load", "the checkpoint before is used",
          cut_old, 5, 1),
    Fault("a whole checkpoint without checksums", "load", "it is used", old_checkpoint, 1, 1),
    Fault("a damaged file of metrics", "load", "it is not believed, the checkpoint is used",
          damaged_metrics, 10, 1),
    Fault("too few file descriptors", "load", "one line, nothing is moved", too_few_descriptors,
          40, 1),
    Fault("deleted checkpoints", "start of training", "one line; never a start at step 0",
          deleted, 6),
)
