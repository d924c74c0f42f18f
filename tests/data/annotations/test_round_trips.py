"""What `predict` writes is read back to the same label: 500 cells with holes that touch."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage import draw

from cellseg_jax.data import lazy
from cellseg_jax.data.datasets import folder
from cellseg_jax.inference import coco_out, outputs


def cells(count=500, shape=(700, 800), seed=0):
    """Touching and cut cells in any number of pieces, every third with a hole; ids with gaps."""
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.int32)
    while len(np.unique(label)) <= count:
        ids = np.setdiff1d(np.arange(1, 2 * count, 2)[:count], label)
        for number in ids:
            center, radii = rng.uniform(0, shape), rng.uniform(6, 22, 2)
            angle = rng.uniform(0, np.pi)
            y, x = draw.ellipse(*center, *radii, shape=shape, rotation=angle)
            label[y, x] = number
            if number % 3 == 0:
                y, x = draw.ellipse(*center, *radii / 3, shape=shape, rotation=angle)
                label[y, x] = 0
    return label


@pytest.fixture(scope="module")
def label():
    return cells()


@pytest.mark.parametrize("name", ["tiff", "roi", "geojson", "geojson.gz", "coco"])
@pytest.mark.parametrize("place", ["masks", "labels", "images", ""])
def test_labels_come_back(tmp_path, label, name, place):
    if place != "labels":
        label = label[:150, :160]
    (tmp_path / ("images" if place else "")).mkdir(exist_ok=True)
    picture = tmp_path / ("images" if place else "") / "cell 1.png"
    pixels = np.random.default_rng(0).integers(0, 255, (*label.shape, 1), np.uint8)
    Image.fromarray(pixels[..., 0]).save(picture)
    image = lazy.from_array(pixels, "cell 1", path=picture)
    outputs.write(name, tmp_path / place / "cell 1", label, image)
    record, = folder.records(tmp_path)
    assert record.name == "cell 1"
    sample = record.read()
    np.testing.assert_array_equal(sample.label, label)
    assert sample.label.dtype == np.int32 and not sample.findings
    if place == "labels":
        assert len(np.unique(label)) == 501


@pytest.mark.parametrize("name, classes", [
    ("tiff", ()), ("geojson", ("living", "dead")), ("coco", ("living", "dead")),
    ("roi", ("1", "2"))])
def test_classes_come_back(tmp_path, label, name, classes):
    semantic = label % 3  # every third object is background
    pixels = np.zeros((*label.shape, 1), np.uint8)
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png")
    image = lazy.from_array(pixels, "a", path=tmp_path / "a.png")
    outputs.write(name, tmp_path / "a", semantic, image, classes=("living", "dead"))
    record, = folder.records(tmp_path, labels="classes", num_classes=3, classes=classes)
    np.testing.assert_array_equal(record.read().label, semantic)


def test_ids_come_back_from_the_file_of_a_folder(tmp_path):
    """predict.coco.json numbers the objects of all images anew, and keeps the ids of each."""
    labels = {"a": np.diag([1, 2, 3]), "b": np.diag([5, 0, 9])}
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    for name, label in labels.items():
        Image.fromarray(label.astype(np.uint8)).save(tmp_path / f"images/{name}.png")
        image = lazy.from_array(label[..., None].astype(np.uint8), name,
                                path=tmp_path / f"images/{name}.png")
        outputs.write("coco", tmp_path / "masks" / name, label, image)
    coco_out.write([tmp_path / "masks"])
    for record in folder.records(tmp_path):
        np.testing.assert_array_equal(record.read().label, labels[record.name])


def test_our_coco_file_names_the_file(tmp_path):
    pixels = np.zeros((4, 5, 1), np.uint8)
    image = lazy.from_array(pixels, "b_0003", path=tmp_path / "sub/b.ome.tif")
    path = outputs.write("coco", tmp_path / "b_0003", np.eye(4, 5, dtype=int), image)
    assert json.loads(path.read_text())["images"][0]["file_name"] == "b.ome.tif"
