"""Batches: the device-resident and the streamed path give equal ones, whatever a sample is."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from helpers import tiny_config
from helpers_tiers import slow_but
from scipy import ndimage

from cellseg_jax import augment, crops, data, targets
from cellseg_jax import config as config_lib
from cellseg_jax.data import order, variants
from cellseg_jax.data.arrays import Arrays
from cellseg_jax.errors import InputError
from cellseg_jax.step import batches as batches_lib
from cellseg_jax.step import inputs
from cellseg_jax.step.batches import Batches, resident_source
from cellseg_jax.step.mapped import gather as gather_
from cellseg_jax.step.mesh import default_mesh
from cellseg_jax.step.spec import make_spec, traced_values

KINDS = {
    "whole": {},
    "patches": dict(data__size=(64, 32), data__grid=2, data__keep_blank=False),
    "windows": dict(data__fit="random_crop", data__size=(24, 40), data__image_size=(40, 36),
                    data__oversample=0.5),
    "weighted windows": dict(data__fit="random_crop", data__target="boundary",
                             data__diameter=9.0),
    "copies": dict(data__copies=3, data__balance=True),
    "mirrored": dict(data__fit="pad", data__image_size=(32, 33), data__size=(48, 40),
                     data__target="boundary"),
}


class FakeRun:
    """What Batches reads of a run."""

    def __init__(self, config, arrays, start):
        self.config, self.arrays, self.step, self.num_steps = config, arrays, start, start + 3
        self.order = order.order_of(config, arrays, data.split_of(config.data, arrays)["train"])


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_batches_equal_what_the_device_gathers(kind):
    batches = {}
    for residence in ("device", "host"):
        configs = [tiny_config(data__residence=residence, seed=seed, data__threads=1 + 2 * seed,
                               **KINDS[kind]) for seed in (0, 1)]
        arrays = data.load(configs[0].data)
        group = [FakeRun(config, arrays, start=5) for config in configs]
        mesh = default_mesh(2, 8)
        resident = resident_source(configs[0], arrays, mesh)
        stream = Batches(2, resident, mesh)
        for slot, member in enumerate(group):
            stream.begin(slot, member)
        window = configs[0].data.size if configs[0].data.fit == "random_crop" else None
        gather = jax.jit(jax.vmap(functools.partial(gather_, window=window), (None, 0)))
        batches[residence] = []
        for _ in range(3):
            source, index = stream.next(range(2))
            batches[residence].append(
                jax.device_get(source if index is None else gather(source, index)))
            for member in group:
                member.step += 1
    for one, other in zip(*batches.values(), strict=True):
        assert set(one) == set(other)
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name], err_msg=name)
    assert len({batch["image"].tobytes() for batch in batches["host"]}) == 3


@pytest.mark.parametrize("residence", ["device", "host"])
def test_a_run_that_became_non_finite_does_not_disturb_the_other(residence):
    """It has ended at a step before those whose batches were read meanwhile, here the last."""
    config = tiny_config(data__residence=residence)
    arrays, mesh = data.load(config.data), default_mesh(1, 8)
    batches = Batches(2, resident_source(config, arrays, mesh), mesh)
    alive, failed = (FakeRun(config, arrays, start=0) for _ in range(2))
    alive.num_steps = 9
    for slot, run in enumerate((alive, failed)):
        batches.begin(slot, run)
    for _ in range(3):
        batches.next(range(2))
        alive.step, failed.step = alive.step + 1, failed.step + 1
    failed.step = 1
    found = [jax.tree.leaves(batches.next(range(2)))]
    for step in (4, 5):
        alive.step = step
        found.append(jax.tree.leaves(batches.next(range(2))))
    ids = [next(x for x in leaves if x.dtype == np.int32 and x.ndim == 2) for leaves in found]
    for step, rows in zip((3, 4, 5), ids, strict=True):
        np.testing.assert_array_equal(rows[0], alive.order.rows(step)["id"])


def assert_layout(arrays, layout, leading):
    """The arrays have these names, row shapes and types."""
    found = {k: (x.shape, x.dtype) for k, x in arrays.items()}
    assert found == {k: ((*leading, *shape), dtype) for k, (shape, dtype) in layout.items()}


@pytest.mark.parametrize("fit", ["resize", "center_crop", "random_crop", "pad"])
@pytest.mark.parametrize("target", targets.TARGETS)
def test_real_batches_have_the_layout(target, fit):
    """Streamed and resident, with copies and without, of training and of evaluation."""
    options = dict(data__fit=fit, data__image_size=(40, 36),
                   data__size=(48, 40) if fit == "pad" else (32, 32))
    for copies in (0, 2):
        streamed, resident = (
            tiny_config(data__copies=copies, data__residence=where, **options)
            for where in ("host", "device"))
        streamed.data.target = resident.data.target = target  # synthetic cells have no classes
        arrays = data.load(streamed.data)
        mesh, member = default_mesh(1, 8), FakeRun(streamed, arrays, 0)
        stream = Batches(1, None, mesh)
        stream.begin(0, member)
        batch, index = stream.next([0])
        assert index is None
        assert_layout(batch, batches_lib.layout(streamed), (1, 8))
        stored = resident_source(resident, arrays, mesh)
        stream = Batches(1, stored, mesh)
        stream.begin(0, member)
        source, index = stream.next([0])
        assert_layout(index, batches_lib.index_layout(resident), (1, 8))
        expected = batches_lib.resident_layout(resident, len(arrays.names), 40 * 36)
        assert_layout(source, expected.train, ())
        assert_layout(stored.eval, expected.eval, ())
        for one in (None, stored):
            batch = next(batches_lib.eval_batches(streamed, arrays, np.arange(8), mesh, one))
            assert_layout(batch, batches_lib.eval_layout(streamed, one is not None), (8,))


@pytest.mark.parametrize("target", slow_but(("classes",), ("flow", "classes")))
def test_mirrored_copies_of_cells_are_learned_as_cells(target):
    """Not as parts of the cell that they mirror, which have no centre and no flow; nor as classes.
    """
    config = config_lib.override(
        tiny_config(augment__flip_horizontal=(0.0, 1.0), augment__shift=(1.0, 0.6)),
        [("data.target", target)] if target == "flow" else [])
    spec = make_spec([config]).replace(target=target)
    label = np.zeros((6, 32, 32), np.uint16)
    label[:, 3:8, 4:10], label[:, 12:20, 11:16] = 1, 2
    label[:, 22:29, 20:29] = 3 if target == "flow" else 1
    batch = {"image": np.zeros((6, 32, 32, 4), np.uint8), "label": label,
             "range": np.tile(np.float32([0, 255]), (6, 4, 1)), "id": np.arange(6)}
    made = inputs.augmented(spec, spec.hparams(traced_values(config, spec)),
                            inputs.step_keys(0, 0)[0], batch, np.arange(6))
    if target == "classes":
        assert np.unique(made["label"]).tolist() == [0, 1, 2]
        return
    truth, number = np.asarray(spec.truth(made)["target"]), 0
    for cell, flow in zip(truth[..., 0] > 0, truth[..., 1:], strict=True):
        pieces, count = ndimage.label(cell, np.ones((3, 3)))
        number += count
        for k in range(1, count + 1):
            if (pieces == k).sum() > 1:
                assert np.linalg.norm(flow[pieces == k], axis=-1).max() > 0.99
    assert number > 6 * 3


@pytest.mark.slow
@pytest.mark.parametrize("copies", [0, 2])
def test_patches_of_augmented_images(copies):
    """Streamed and resident alike: every row is the patch that is cut from its augmented image."""
    made, options = {}, dict(
        data__size=(48, 32), data__grid=2, data__copies=copies, data__augment_before_grid=True,
        augment__rotation=(0.9, 180.0), augment__brightness=(0.5, 0.3), data__target="boundary")
    for residence in ("device", "host"):
        config = tiny_config(data__residence=residence, **options)
        arrays, mesh = data.load(config.data), default_mesh(1, 8)
        member, spec = FakeRun(config, arrays, start=3), make_spec([config])
        stream = Batches(1, resident_source(config, arrays, mesh), mesh)
        stream.begin(0, member)
        batch, index = stream.next([0])
        if index is None:
            assert_layout(batch, batches_lib.layout(config), (1, 8))
            batch = {k: v[0] for k, v in batch.items()}
        else:
            batch = gather_(batch, {k: v[0] for k, v in index.items()}, None, spec.grid)
        hparams = spec.hparams(traced_values(config, spec))
        made[residence] = jax.device_get(jax.jit(
            lambda batch, spec=spec, hparams=hparams: inputs.augmented(
                spec, hparams, jax.random.key(1), batch, np.arange(8)))(batch))
    for name in ("image", "label", "pixel_weight", "id"):
        np.testing.assert_array_equal(made["device"][name], made["host"][name], err_msg=name)
    rows, settings = made["host"], {name: tuple(config.augment[name])
                                    for name in ("flip_horizontal", "rotation")}
    for n, sample in enumerate(rows["id"]):
        image, cell = divmod(sample, 4)
        key = (augment.variant_key(config.seed, image, rows["copy"][n]) if copies
               else jax.random.fold_in(jax.random.key(1), n))
        chosen = settings if not copies or rows["copy"][n] else {}
        whole = {name: crops.from_grid(getattr(arrays, name)[4 * image : 4 * image + 4])
                 for name in ("image", "label", "pixel_weight")}
        label = crops.to_grid(np.asarray(augment.warp(key, whole, chosen)["label"]), 2)[cell]
        assert (rows["label"][n] != label).mean() < 0.01  # rounding at half a pixel
    if copies:
        config = tiny_config(**options | dict(data__keep_blank=False))
        found = order.order_of(config, arrays, data.split_of(config.data, arrays)["train"])
        share = variants.foreground(config, arrays, np.arange(arrays.num_samples))
        samples = [np.divmod(found(step), copies + 1) for step in range(found.steps_per_epoch)]
        assert all((share[sample, copy] > 0).all() for sample, copy in samples)
        for n, (sample, copy) in enumerate(zip(rows["id"], rows["copy"], strict=True)):
            assert abs(share[sample, copy] - (rows["label"][n] > 0).mean()) < 0.005
        assert (share[:, 0] == arrays.foreground).all()


def test_patches_cut_after_a_warp_stay_on_the_host_where_the_device_cannot_count_them(monkeypatch):
    """Flat numbers of pixels have 32 bits: beyond them other images would be read."""
    monkeypatch.setattr(batches_lib, "put", lambda *_: pytest.fail("copied to the device"))
    monkeypatch.setattr(batches_lib, "device_memory", lambda: 2**40)
    monkeypatch.setattr(Arrays, "nbytes", 2**33)
    known = {field.name: None for field in dataclasses.fields(Arrays)}
    many = Arrays(**known | {"flat": {}, "image": np.broadcast_to(np.uint8(0), (1, 512, 256, 1)),
                             "label": np.broadcast_to(np.uint16(0), (2**14, 512, 256)),
                             "tables": {"minmax": np.zeros((1, 1, 2))}, "grid": 1})
    config = tiny_config(data__size=(1024, 512), data__grid=2, data__augment_before_grid=True)
    assert resident_source(config, many, default_mesh(8, 1)) is None
    config.data.residence = "device"
    with pytest.raises(InputError, match="more than 2..31 pixels; expected 'host'"):
        resident_source(config, many, default_mesh(8, 1))
