"""Checkpoints: a judgement beside the state, and those made before it was there."""

import dataclasses
import json
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny_config
from orbax.checkpoint import v1 as ocp

from cellseg_jax.errors import InputError
from cellseg_jax.runs import checkpoint
from cellseg_jax.runs.lock import InUse
from cellseg_jax.step.spec import make_spec, traced_values
from cellseg_jax.step.state import init_state

JUDGEMENT = {"best": 0.1, "waited": 3, "previous_loss": -np.inf, "plateau": {"scale": 0.3}}


def make_state(**options):
    config = tiny_config(**options)
    spec = make_spec([config])
    return jax.jit(lambda values: init_state(spec, values, (32, 32, 4)))(
        traced_values(config, spec))


def wanted(state):
    return checkpoint.abstract(state, jax.sharding.SingleDeviceSharding(jax.devices()[0]))


def fail(text):
    raise AssertionError(text)


@pytest.fixture(scope="module")
def state():
    return make_state(optimizer__ema=0.5)


def assert_restored(directory, state):
    saves = checkpoint.Checkpoints(directory)
    restored, judgement = saves.restore_latest(wanted(state), fail)
    saves.close()
    jax.tree.map(np.testing.assert_array_equal, restored, state.replace(values={}))
    return judgement


def test_a_judgement_comes_back_with_its_state(tmp_path, state):
    saves = checkpoint.Checkpoints(tmp_path)
    assert saves.restore_latest(wanted(state), fail) is None
    saves.save(state, 3, score=0.5, judgement=JUDGEMENT)
    saves.close()
    assert assert_restored(tmp_path, state) == JUDGEMENT


def test_a_checkpoint_with_the_judgement_among_its_leaves_is_restored(tmp_path, state):
    """As runs of before wrote it."""
    leaves = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)} | {
        "values": {}, "best": jnp.float32(0.25), "waited": jnp.int32(2),
        "previous_loss": jnp.float32(-0.5), "plateau": {}}
    for step, plateau in ((1, {}), (2, {"scale": jnp.float32(0.5), "best": jnp.float32(0.25),
                                        "waited": jnp.int32(1), "cooldown": jnp.int32(0)})):
        with ocp.training.Checkpointer(tmp_path) as orbax:
            orbax.save_checkpointables(step, {"state": leaves | {"plateau": plateau}})
        judgement = assert_restored(tmp_path, state)
        assert judgement.get("plateau", {}) == plateau
        assert [judgement[k] for k in ("best", "waited", "previous_loss")] == [0.25, 2, -0.5]
        assert all(isinstance(judgement[k], (int, float)) for k in ("best", "waited"))


def test_shapes_kept_beside_a_state_are_those_of_its_arrays(tmp_path, state):
    """Orbax opens each array to tell; so it has to in checkpoints of before."""
    saves = checkpoint.Checkpoints(tmp_path)
    saves.save(state, 3)
    saves.close()
    found, file = checkpoint._shapes(tmp_path / "3"), tmp_path / "3" / checkpoint.METADATA
    content = json.loads(file.read_text())
    assert content["custom_metadata"].pop("shapes")
    file.write_text(json.dumps(content))
    of_orbax = checkpoint._shapes(tmp_path / "3")
    assert "opt_state" in of_orbax and set(found) == set(checkpoint.NETWORK)
    assert found == {name: of_orbax[name] for name in checkpoint.NETWORK}


def test_a_save_under_way_is_what_is_restored(tmp_path, state, monkeypatch):
    saves = checkpoint.Checkpoints(tmp_path)
    write = checkpoint.checksums.write
    monkeypatch.setattr(checkpoint.checksums, "write", lambda path: (time.sleep(0.5), write(path)))
    saves.save(state, 3)
    assert saves.restore_latest(wanted(state), fail) is not None
    saves.close()


def test_checkpoints_that_another_process_removes_are_no_error(tmp_path, state, monkeypatch):
    """It replaces one while they are listed or restored; or it has taken the run over."""
    taken = []

    def check():
        if taken:
            raise InUse("a", "b")

    def removed(path, *_):
        if path.name == "1":
            shutil.rmtree(path)
            raise AttributeError("'NoneType' object has no attribute 'get'")
        return 0.5

    saves = checkpoint.Checkpoints(tmp_path, check)
    saves.save(state, 1)
    saves.save(state, 2, score=0.5)
    saves.wait()
    shutil.copytree(tmp_path / "2", tmp_path / "1", dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_score", removed)
        assert checkpoint.saved_steps(tmp_path) == {"last": 2, "best": 2}

    def replaced(path, _):
        if path.name == "2":
            path.rename(path.with_name("3"))
            raise AttributeError("'NoneType' object has no attribute 'get'")
        return path.name

    monkeypatch.setattr(checkpoint, "_restored", replaced)
    assert saves.restore_latest(wanted(state), fail) == "3"
    taken.append(True)
    monkeypatch.setattr(checkpoint, "_restored", lambda path, _: path.open())
    with pytest.raises(InUse):
        saves.restore_latest(wanted(state), fail)
    taken.clear()
    with pytest.raises(InputError, match="3: cannot be read .*Is a directory"):
        saves.restore_latest(wanted(state), lambda _: None)
    saves.close()


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_refused_with_the_leaf_that_differs(tmp_path, state):
    saves = checkpoint.Checkpoints(tmp_path)
    saves.save(state, 3)
    other = make_state(model__channels=(4, 6))
    with pytest.raises(InputError, match=r"config.json: .* has shape .*use a new workdir"):
        saves.restore_latest(wanted(other), fail)
    saves.close()
    assert checkpoint.saved_steps(tmp_path) == {"last": 3, "best": 3}
