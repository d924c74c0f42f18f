"""Cut and damaged annotation files are read or refused in words, never with another error."""

import gzip
import json
import pathlib
import zipfile

import numpy as np
import pytest

from cellseg_jax.data import lazy
from cellseg_jax.data.annotations import arrays, coco, geojson, imagej, labelme
from cellseg_jax.errors import InputError
from cellseg_jax.inference import outputs

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden/annotations.npz"
SHAPE = (40, 50)


def of_coco(path, shape):
    index, kinds = coco.index(path), coco.categories(path)
    return [coco.draw(path, coco.annotations(path, index.of(image)), kinds, shape)
            for image in index.images]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """{name: (content, its reader)}."""
    folder, golden = tmp_path_factory.mktemp("files"), np.load(GOLDEN)
    label = np.zeros(SHAPE, np.int32)
    label[3:20, 4:20], label[5:9, 6:9], label[22:30, 4:20] = 1, 0, 2
    image = lazy.from_array(np.zeros((*SHAPE, 1), np.uint8), "a")
    made = {name: outputs.write(name, folder / "a", label, image).read_bytes()
            for name in ("roi", "geojson", "coco")}
    with zipfile.ZipFile(folder / "a_rois.zip") as archive:
        rois = {f"{n}.roi": (archive.read(f"{n}.roi"), imagej.read) for n in (1, 2)}
    shapes = {"shapes": json.loads(str(golden["shapes"])), "imageHeight": 40, "imageWidth": 50}
    return rois | {
        "a.zip": (made["roi"], imagej.read), "a.geojson": (made["geojson"], geojson.read),
        "a.geojson.gz": (gzip.compress(made["geojson"], mtime=0), geojson.read),
        "a.json": (json.dumps(shapes).encode(), labelme.read), "coco.json": (made["coco"], of_coco),
        "a_seg.npy": (golden["seg"].tobytes(), lambda path, shape: arrays.read(path))}


@pytest.mark.parametrize("name", ["1.roi", "2.roi", "a.zip", "a.geojson", "a.geojson.gz", "a.json",
                                  "coco.json", "a_seg.npy"])
def test_damaged_files_are_refused_in_words(tmp_path, files, name):
    (content, read), path, refused = files[name], tmp_path / name, 0
    for n in range(60):
        rng = np.random.default_rng(n)
        data = bytearray(content)
        at = int(rng.integers(len(data)))
        if n % 3 == 0:
            data = data[:at]
        elif n % 3 == 1:
            data[at : at + int(rng.integers(1, 30))] = b""
        else:
            for place in rng.integers(len(data), size=3):
                data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            read(path, SHAPE)
        except InputError as error:
            assert str(error).startswith(str(path))
            refused += 1
    assert refused > 15
