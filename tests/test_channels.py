"""Chosen channels: the same in training, scores, prediction and export."""

import json

import numpy as np
import pytest
import tifffile
from absl import flags
from helpers import tiny_config
from PIL import Image

from cellseg_jax import cli, predict
from cellseg_jax import config as config_lib
from cellseg_jax.data import lazy
from cellseg_jax.data.stacks import ReadOptions
from cellseg_jax.errors import InputError
from cellseg_jax.inference import images_in
from cellseg_jax.inference.options import AS_TRAINED
from cellseg_jax.inference.predictor import Predictor
from cellseg_jax.train.one_run import train_and_score

if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


OTSU = config_lib.changed(tiny_config(), {
    "data.name": "folder", "model.name": "otsu", "model.polarity": "bright"})


def write_pairs(root, order=(0, 1), count=6):
    """Noise and cells as two channels of ImageJ, named, in either order, and masks of the cells."""
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for n in range(count):
        label = np.zeros((32, 32), np.uint8)
        label[3 + n : 11 + n, 4:13], label[18:27, 16:25] = 1, 2
        noise = rng.integers(0, 5000, label.shape, np.uint16)
        cells = np.where(label > 0, 200, 100).astype(np.uint16)  # dim beside the noise
        planes = [(noise, "noise"), (cells, "cells")]
        pixels, names = zip(*(planes[i] for i in order), strict=True)
        tifffile.imwrite(root / f"images/{n}.tif", np.stack(pixels), imagej=True,
                         metadata={"axes": "CYX", "Labels": list(names)})
        tifffile.imwrite(root / f"masks/{n}.tif", label)
    return root


def run_predict(**values):
    return cli.run_command(predict.main, predict.define_flags,
                           ["predict", *(f"--{k}={v}" for k, v in values.items())])


def found(out, root, n=0):
    """Whether the label of an image is its mask, but for numbers."""
    label = tifffile.imread(out / f"{n}_label.tif")
    return np.array_equal(label > 0, tifffile.imread(root / f"masks/{n}.tif") > 0)


@pytest.fixture(scope="module")
def otsu(tmp_path_factory):
    """A run of Otsu's method on the channel of the cells, chosen by name."""
    root = write_pairs(tmp_path_factory.mktemp("two") / "data")
    config = config_lib.changed(OTSU, {"data.root": str(root), "data.channel_index": "cells",
                                       "data.split": (0.5, 0.0, 0.5)})
    train_and_score(config, root.parent / "run")
    return root.parent


def test_the_cells_of_the_second_channel_are_found(otsu, tmp_path, capsys):
    scores = json.loads((otsu / "run/eval/test.json").read_text())
    assert scores["metrics_original_size"]["dice_mean"] == 1
    assert run_predict(workdir=otsu / "run", images=otsu / "data/images", out=tmp_path / "a") == 0
    assert all(found(tmp_path / "a", otsu / "data", n) for n in range(6))
    other = write_pairs(tmp_path / "turned", order=(1, 0))  # by name, wherever it is
    assert run_predict(workdir=otsu / "run", images=other / "images", out=tmp_path / "b") == 0
    assert all(found(tmp_path / "b", other, n) for n in range(6))


def test_crops_of_gray_images_with_alpha_are_scored(tmp_path):
    image, label = np.full((40, 44), 20, np.uint8), np.zeros((40, 44), np.uint8)
    label[5:15, 6:16], label[20:30, 20:32] = 1, 2
    image[label > 0] = 200
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for n in range(10):
        Image.fromarray(np.dstack([image, np.full_like(image, 255)])).save(
            tmp_path / f"images/{n}.png")
        Image.fromarray(label).save(tmp_path / f"masks/{n}.png")
    config = config_lib.changed(config_lib.default(), {
        "model.name": "otsu", "data.name": "folder", "data.root": str(tmp_path), "eval.panels": 0,
        "data.size": (32, 32), "data.fit": "random_crop", "data.cache": str(tmp_path / "cache")})
    train_and_score(config, tmp_path / "run")
    scores = json.loads((tmp_path / "run/eval/test.json").read_text())
    assert scores["metrics_original_size"]["ap50"] == 1


def test_other_channels_are_predicted_if_they_are_as_many(otsu, tmp_path, capsys):
    images = otsu / "data/images"
    assert run_predict(workdir=otsu / "run", images=images, out=tmp_path, channels="0") == 0
    assert not found(tmp_path, otsu / "data")
    made = json.loads((tmp_path / "predict.json").read_text())
    assert made["--channels"] == "0"
    capsys.readouterr()
    assert run_predict(workdir=otsu / "run", images=images, out=tmp_path) == 2
    assert "--channels (0, now None)" in capsys.readouterr().err
    assert run_predict(workdir=otsu / "run", images=images, out=tmp_path, channels="0,1") == 2
    assert "--channels: got '0,1', 2 channels; the run takes 1" in capsys.readouterr().err


def test_channels_that_no_dataset_or_method_has_are_refused(otsu):
    with pytest.raises(InputError, match="config.data.channel_index: got '1'; expected '' with the "
                                         "files of synthetic"):
        tiny_config(data__channel_index="1")
    for key, value, words in (
            ("data.channel_index", "1,,2", "expected numbers from 0 or names"),
            ("data.z", "last", "expected slices, max, mean, or the number"),
            ("data.channel_index", "0,1", "one channel or three, of which otsu makes gray")):
        with pytest.raises(InputError, match=f"config.{key}: got '{value}'.*"
                                             f"{words}"):
            config_lib.changed(OTSU, {key: value})


@pytest.mark.weekly
def test_a_network_of_stains_predicts_in_bands_what_it_does_at_once(tmp_path):
    root = write_pairs(tmp_path / "data")
    config = config_lib.changed(tiny_config(train__epochs=1), {
        "data.name": "folder", "data.root": str(root), "data.channel_index": "cells,noise",
        "data.fit": "random_crop", "data.split": (0.5, 0.0, 0.5), "augment.rgb_shift": (1.0, 0.1),
        "train.batch_size": 2})
    train_and_score(config, tmp_path / "run")
    run = Predictor(tmp_path / "run", config)
    [image] = lazy.open_images(root / "images/0.tif", ReadOptions.of(config.data))
    assert image.channels == ("cells", "noise")
    whole = run.image_probs(image)
    bands = np.concatenate(list(run.bands(image, AS_TRAINED._replace(band_pixels=100))))
    np.testing.assert_allclose(bands, whole, atol=1e-6)
    np.testing.assert_array_equal(run.image_probs(image.read()), whole)  # an array in memory
    other = lazy.open_images(root / "images/0.tif", ReadOptions(channel_index="noise,cells"))[0]
    assert np.abs(run.image_probs(other) - whole).max() > 1e-3
    with pytest.raises(InputError, match="image: image has 3 channels; expected 2, which are"):
        run.image_probs(np.zeros((32, 32, 3), np.uint16))


# --- which files are images ----------------------------------------------------------------------


def test_brackets_in_the_name_of_a_folder_are_no_wildcards(tmp_path):
    for folder in ("plate [1]", "plate 1"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        for name in ("a.tif", "b.tif", "deep/c.tif"):
            tifffile.imwrite(tmp_path / folder / name, np.zeros((4, 5), np.uint8))
    names = lambda text: [(path.relative_to(tmp_path).as_posix(), stem.as_posix())
                          for path, stem in images_in.find([str(tmp_path / text)], "out")]
    assert names("plate [1]/*.tif") == [("plate [1]/a.tif", "out/a"), ("plate [1]/b.tif", "out/b")]
    assert names("plate [1]/**/c.tif") == [("plate [1]/deep/c.tif", "out/deep/c")]
    assert names("plate [1]/[a]*.tif") == [("plate [1]/a.tif", "out/a")]
    assert [path for path, _ in names("plate [0-9]/*.tif")] == ["plate 1/a.tif", "plate 1/b.tif"]


def test_an_ome_set_is_predicted_once(tmp_path, capsys):
    names = ["a_0.ome.tif", "a_1.ome.tif"]
    data = "".join(f'<TiffData FirstC="{n}" PlaneCount="1"><UUID FileName="{name}">{name}</UUID>'
                   "</TiffData>" for n, name in enumerate(names))
    for n, name in enumerate(names):
        xml = ('<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
               f' UUID="{name}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
               'Type="uint8" SizeX="6" SizeY="5" SizeC="2" SizeZ="1" SizeT="1"><Channel ID="C:0"/>'
               f'<Channel ID="C:1"/>{data}</Pixels></Image></OME>')
        tifffile.imwrite(tmp_path / name, np.full((5, 6), n, np.uint8), description=xml,
                         metadata=None)
    found = images_in.find([str(tmp_path)], "out")
    assert [path.name for path, _ in found] == names[:1]
    for name in names:  # as plain TIFFs that a companion file lists
        tifffile.imwrite(tmp_path / name.replace(".ome", ""), np.zeros((5, 6), np.uint8))
        (tmp_path / name).rename(tmp_path.parent / name)
    (tmp_path / "a.companion.ome").write_text(xml.replace(".ome.tif", ".tif"))
    found = images_in.find([str(tmp_path)], "out")
    assert [path.name for path, _ in found] == ["a_0.tif"]
    assert not capsys.readouterr().out  # a companion file is no file that is left out
    for name in names:
        (tmp_path / name.replace(".ome", "")).unlink()
        (tmp_path.parent / name).rename(tmp_path / name)
    (tmp_path / names[0]).unlink()  # the other is left, and an error when it is read
    assert [path.name for path, _ in images_in.find([str(tmp_path)], "out")] == names[1:]
