"""Instance ids may be as large as 2^31 - 1: no table has an entry for each number below them."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from PIL import Image

from cellseg_jax import config, metrics, targets
from cellseg_jax.data import lazy
from cellseg_jax.data.datasets import ctc
from cellseg_jax.data.quality.examine import examine
from cellseg_jax.data.quality.topology import pieces_and_holes
from cellseg_jax.data.scale import cell_diameters
from cellseg_jax.inference import outputs
from cellseg_jax.inference.outputs import files
from cellseg_jax.report import panels
from cellseg_jax.targets import geometry

SMALL = np.zeros((40, 50), np.int32)
SMALL[3:9, 3:9], SMALL[12:30, 5:20], SMALL[12:30, 20:31], SMALL[20:23, 8:11] = 1, 2, 3, 4
LARGE = SMALL + 500_000_000 * (SMALL > 0)
PIXELS = np.random.default_rng(0).integers(0, 255, (40, 50, 1), np.uint8)
MIB = 2**20


def peak(function, *arguments, **options):
    """(result, bytes that Python and NumPy held at most meanwhile)."""
    tracemalloc.start()
    try:
        return function(*arguments, **options), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


EQUAL = {  # functions of a label whose result has no ids in it, or has them renumbered
    "remove_small": lambda label: geometry.remove_small(label, 10),
    "in_reading_order": geometry.in_reading_order,
    "pieces_and_holes": lambda label: [len(ids) for ids in pieces_and_holes(label)],
    "cell_diameters": cell_diameters,
    "partly_annotated": lambda label: ctc.partly_annotated(SMALL * (SMALL < 3), 5, label) < 0,
    "instance_counts": lambda label: metrics.instance_counts(label, SMALL),
    "image_objects": lambda label: metrics.image_objects(label, SMALL, np.ones(label.shape)),
    "covered": lambda label: metrics.instance_counts(SMALL, label),
}


@pytest.mark.parametrize("name", EQUAL)
def test_functions_of_a_label_need_no_memory_for_large_ids(name):
    result, size = peak(EQUAL[name], LARGE)
    assert size < 4 * MIB
    np.testing.assert_equal(result, EQUAL[name](SMALL))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32])
@pytest.mark.parametrize("name", sorted(targets.TARGETS.keys() - {"classes"}))
def test_targets_do_not_depend_on_the_type_that_just_holds_the_ids(name, dtype):
    """Decoded labels have the narrowest type: arithmetic in it would leave it."""
    few = np.array([0, 2, 1, 3], dtype)[np.minimum(SMALL[None, :24, :24], 3)]
    few[0, 15:20, 3:8] = 1  # cells at the border, and two that touch
    highest = np.iinfo(dtype).max
    largest = np.array([0, highest - 2, highest - 1, highest], dtype)[few]
    encode = targets.TARGETS[name].encode
    expected, found = encode(few.astype(np.int32)), encode(jnp.asarray(largest))
    np.testing.assert_array_equal(found, expected)
    if dtype != np.uint16:  # some pixels are not annotated
        few[0, :, :2], largest[0, :, :2] = -1, -1
    known = targets.TARGETS[name].regression_known
    np.testing.assert_array_equal(known(jnp.asarray(largest)), known(jnp.asarray(few)))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(targets.TARGETS.keys() - {"classes"}))
def test_targets_encode_large_ids(name):
    encode = targets.TARGETS[name].encode
    result, size = peak(lambda: np.asarray(encode(LARGE[None])))
    assert size < 64 * MIB  # that of compiling
    np.testing.assert_array_equal(result, np.asarray(encode(SMALL[None])))


def test_panels_show_large_ids():
    for shown in (lambda label: panels.panel(PIXELS, label, label),
                  lambda label: panels.overlay(PIXELS, label)):
        picture, size = peak(shown, LARGE)
        assert size < 64 * MIB and picture.std() > 0
    label = geometry.in_reading_order(LARGE)
    assert len(np.unique(panels._colours(label).reshape(-1, 3), axis=0)) > 2


@pytest.mark.parametrize("name", ["tiff", "png", "roi", "geojson", "coco", "csv"])
@pytest.mark.parametrize("block", [files.BLOCK, 300])
def test_outputs_keep_large_ids(tmp_path, monkeypatch, name, block):
    monkeypatch.setattr(files, "BLOCK", block)
    image = lazy.from_array(PIXELS, "a")
    path, size = peak(outputs.write, name, tmp_path / "large", LARGE, image)
    assert size < 64 * MIB
    small = outputs.write(name, tmp_path / "small", SMALL, image)
    if name == "tiff":
        np.testing.assert_array_equal(tifffile.imread(path), LARGE)
    elif name != "png":
        content = path.read_bytes()
        assert all(str(n).encode() in content for n in np.unique(LARGE)[1:])
    if name == "csv":
        assert path.read_text().replace("50000000", "") == small.read_text()


def test_the_doctor_reads_large_ids(tmp_path):
    for n, label in enumerate((LARGE, np.roll(LARGE, 3, 0))):
        for kind in ("images", "masks"):
            (tmp_path / kind).mkdir(exist_ok=True)
        Image.fromarray(np.roll(PIXELS[..., 0], n)).save(tmp_path / f"images/{n}.png")
        tifffile.imwrite(tmp_path / f"masks/{n}.tif", label)
    chosen = config.default()
    chosen.data.name, chosen.data.root = "folder", str(tmp_path)
    chosen = config.complete(chosen)
    examined, size = peak(examine, chosen.data)
    assert size < 8 * MIB and [fact.num_objects for fact in examined.facts] == [4, 4]
