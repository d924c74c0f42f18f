"""Which devices a run uses: every config and every row of a study, on any number of them."""

import functools
import types

import jax
import pytest
from helpers import ROOT, tiny_config
from helpers_tiers import slow_but
from jax.sharding import AbstractMesh

from cellseg_jax import config as config_lib
from cellseg_jax import studies
from cellseg_jax.config import derived
from cellseg_jax.errors import InputError
from cellseg_jax.planning import shapes
from cellseg_jax.step.mesh import (
    AXES,
    check_mesh,
    default_mesh,
    make_mesh,
    mesh_shape,
    of_each_process,
    unused,
)
from cellseg_jax.step.spec import make_spec
from cellseg_jax.studies.study import representatives

CONFIGS = {path.stem: path for path in sorted((ROOT / "configs").glob("*.py"))}
STUDIES = {path.stem: path for path in sorted((ROOT / "configs/studies").glob("*.py"))}
DEVICES = (1, 2, 4, 8, 16)


def devices_of(processes, each):
    return [types.SimpleNamespace(process_index=p, id=each * p + k)
            for p in range(processes) for k in range(each)]


@functools.cache
def study(path):
    return studies.load(path)


def assert_shares(config, members, num_devices, unit=1):
    """The work divides over the mesh evenly, and over no larger one."""
    batch, accumulate = config.train.batch_size, config.optimizer.accumulate
    member, data = mesh_shape(members, batch, accumulate, num_devices, unit)
    check_mesh(config, AbstractMesh((member, data), AXES))
    assert member * data <= num_devices and member * data % unit == 0
    for m in range(1, num_devices + 1):
        for d in range(1, num_devices // m + 1):
            if batch % (d * accumulate) == 0 and m * d % unit == 0:
                assert min(m, members) * d <= min(member, members) * data
    return member, data


@pytest.mark.parametrize("path", slow_but(("quickstart", "unet_sgd"), CONFIGS))
def test_every_config_starts_on_any_number_of_devices(path):
    config = config_lib.load(str(path))
    spec = make_spec([config])
    for num_devices in DEVICES:
        member, data = assert_shares(config, 1, num_devices)
        assert member == 1
        if config.train.batch_size >= num_devices and config.optimizer.accumulate == 1:
            assert data > 1 or num_devices == 1
        mesh = AbstractMesh((member, data), AXES)
        state, source, index = shapes.arguments(  # without an array, and nothing is compiled
            config, spec, mesh, shapes.Images(100, 64 * 64), resident=False)
        rows = source["image"].sharding.shard_shape(source["image"].shape)
        assert rows[:2] == (1, config.train.batch_size // data) and index is None
        assert all(x.sharding.shard_shape(x.shape) == x.shape for x in jax.tree.leaves(state))


@pytest.mark.parametrize("path", slow_but(("ebhi_cpu", "em", "peers"), STUDIES))
def test_every_row_of_a_study_starts_on_any_number_of_devices(path):
    table = study(path)
    kinds = {}
    for row in representatives(table):
        config = studies.config_of(table, row, 0)
        if not derived.is_classical(config):
            kinds[config.train.batch_size, config.optimizer.accumulate] = config
    assert kinds
    for config in kinds.values():
        for num_devices in DEVICES:
            for members in (1, 2, table.repeats, 5, 16):
                assert_shares(config, members, num_devices)
                for unit in (2, 4, num_devices):  # processes, or a TPU
                    if unit <= num_devices:
                        assert_shares(config, members, num_devices, unit)


@pytest.mark.parametrize("given, expected", [
    ((1, 8, 1, 8), (1, 8)), ((1, 4, 1, 8), (1, 4)), ((1, 44, 1, 8), (1, 4)),
    ((1, 44, 1, 16), (1, 11)), ((1, 1, 1, 8), (1, 1)), ((3, 2, 1, 8), (3, 2)),
    ((3, 6, 1, 8), (1, 6)), ((8, 6, 1, 8), (4, 2)), ((1, 16, 4, 8), (1, 4)),
    # A process without a row of the batch computes an empty slot; so does a part of a TPU.
    ((1, 4, 1, 8, 8), (2, 4)), ((1, 6, 1, 8, 8), (4, 2)), ((1, 2, 1, 16, 4), (2, 2)),
    ((1, 3, 1, 4, 2), (2, 1)), ((2, 3, 1, 4, 2), (2, 1)),
    ((1, 4, 1, 8, 2), (1, 4))])
def test_mesh_shapes(given, expected):
    assert mesh_shape(*given) == expected


def test_every_process_owns_its_share_of_the_mesh_in_order():
    ids = lambda devices, count: [device.id for device in of_each_process(devices, count)]
    assert ids(devices_of(2, 4), 4) == [0, 1, 4, 5]
    mixed = sorted(devices_of(4, 2), key=lambda device: device.id % 2)  # processes in turn
    assert ids(mixed, 8) == list(range(8)) and ids(mixed, 4) == [0, 2, 4, 6]
    assert default_mesh(1, 6).devices.shape == (1, 6)
    assert default_mesh(2, 2, 1, jax.devices()[:4]).devices.shape == (2, 2)


def test_an_unused_device_is_named_with_the_batch_that_would_use_it():
    config = tiny_config(train__batch_size=4)
    assert unused(config, 4, 8) == (
        "4 of 8 devices are used, since batches of 4 do not divide over more: make "
        "config.train.batch_size a multiple of 8 to use all")
    assert unused(config, 4, 4) == "" and unused(tiny_config(train__batch_size=8), 4, 8) == ""
    split = tiny_config(train__batch_size=8, optimizer__accumulate=2)
    assert "a multiple of 16" in unused(split, 4, 8)


def test_a_given_mesh_that_cannot_work_is_refused_in_one_line(monkeypatch):
    with pytest.raises(InputError, match="batch_size: got 6; expected a multiple of the 4 devices"):
        check_mesh(tiny_config(train__batch_size=6), make_mesh(1, 4))
    with pytest.raises(InputError, match="accumulate: got 2; expected a divisor of the 1 images"):
        check_mesh(tiny_config(optimizer__accumulate=2), make_mesh(1, 8))
    with pytest.raises(InputError, match=r"mesh: got the axes \('x', 'data'\); expected"):
        check_mesh(tiny_config(), AbstractMesh((1, 4), ("x", "data")))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="mesh: got 1 devices; expected a multiple of the 2"):
        check_mesh(tiny_config(), AbstractMesh((1, 1), AXES))
